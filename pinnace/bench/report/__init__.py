"""Reports: one HTML file or pictures, of a benchmark or of a profile."""
