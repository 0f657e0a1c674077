python plot.py
