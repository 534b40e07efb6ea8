"""Runs on images: classifiers, whose teachers and students see augmented views."""
