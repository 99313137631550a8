"""Training draft heads; everything here that computes needs torch."""
