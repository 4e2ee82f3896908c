"""The models that report metrics need: BERTScore, CheXbert, RadGraph, RaTEScore."""
