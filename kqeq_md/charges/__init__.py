"""Charge equilibration: from electronegativities to charges and their energy."""
