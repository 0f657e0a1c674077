// SPDX-License-Identifier: MIT

#include "python_host.h"

#include <dlfcn.h>

#include <clocale>
#include <cstdlib>
#include <stdexcept>
#include <string>

KqeqTable Python::table{};
void *Python::library = nullptr;
int (*Python::is_initialized)() = nullptr;

template <class Function> Function Python::symbol(const char *name)
{
  void *address = dlsym(library, name);
  if (!address)
    throw std::runtime_error(std::string("libpython has no ") + name +
                             ": run the same command line with `kqeq-lmp` instead of `lmp`");
  return reinterpret_cast<Function>(address);
}

void Python::find()
{
  library = RTLD_DEFAULT;
  if (!dlsym(library, "Py_IsInitialized")) {    // else Python is the host of this process
    const char *path = getenv("KQEQ_LIBPYTHON");
    if (!path || !*path)
      throw std::runtime_error(
          "this Python has no shared libpython: run the same command line with `kqeq-lmp` instead of `lmp`");
    // global: Python's own extension modules look up their symbols in it
    library = dlopen(path, RTLD_NOW | RTLD_GLOBAL);
    if (!library) throw std::runtime_error(dlerror());
  }
  is_initialized = symbol<int (*)()>("Py_IsInitialized");
}

void Python::attach()
{
  auto import = symbol<void *(*) (const char *)>("PyImport_ImportModule");
  auto call = symbol<void *(*) (void *, const char *, const char *, ...)>("PyObject_CallMethod");
  auto release = symbol<void (*)(void *)>("Py_DecRef");
  void *module = import("kqeq_md.lammps_plugin.pair");
  void *result = nullptr;
  if (module)
    result = call(module, "attach", "KK", reinterpret_cast<unsigned long long>(&table),
                  static_cast<unsigned long long>(sizeof(KqeqCall)));
  if (!result) symbol<void (*)()>("PyErr_Print")();
  release(result);
  release(module);
  if (!result) throw std::runtime_error("cannot start Python, see the message above");
}

void Python::start()
{
  if (table.compute) return;
  find();
  if (is_initialized()) {
    int state = symbol<int (*)()>("PyGILState_Ensure")();
    auto restore = symbol<void (*)(int)>("PyGILState_Release");
    try {
      attach();
    } catch (...) {
      restore(state);
      throw;
    }
    restore(state);
    return;
  }
  // the program's path tells Python which virtual environment it belongs to
  if (const char *program = getenv("KQEQ_PYTHON")) {
    setlocale(LC_CTYPE, "");    // as Python's start does: without it all but ASCII in the path is lost
    auto decode = symbol<wchar_t *(*) (const char *, size_t *)>("Py_DecodeLocale");
    symbol<void (*)(const wchar_t *)>("Py_SetProgramName")(decode(program, nullptr));
  }
  symbol<void (*)(int)>("Py_InitializeEx")(0);    // 0: Ctrl-C stays LAMMPS'
  attach();
  symbol<void *(*) ()>("PyEval_SaveThread")();    // callbacks take the lock when they need it
}
