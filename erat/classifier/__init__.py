"""Provides a robust classifier with the interface of scikit-learn."""

from erat.classifier.estimator import ERATClassifier

__all__ = ["ERATClassifier"]
