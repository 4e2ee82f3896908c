"""Measure the cost of answering; reads models and images, writes nothing."""
