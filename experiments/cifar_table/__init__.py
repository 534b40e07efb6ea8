"""The CIFAR distillation table: every pair and method beside its published figure."""
