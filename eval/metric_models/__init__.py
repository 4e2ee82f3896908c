"""Instruments: models and annotations that metrics of reports need."""
