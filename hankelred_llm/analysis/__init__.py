"""Analysis of adapters: calibration on data, Hankel spectra, reduction, initialization."""
