"""What data say of an adapter: calibration, Hankel spectra, reduction, initialization."""
