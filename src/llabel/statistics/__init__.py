"""How sure one can be: resampling, intervals, paired tests."""
