"""Answers, scores and figures."""
