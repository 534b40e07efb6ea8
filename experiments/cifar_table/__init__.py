"""The CIFAR distillation table: every pair and method, with its published accuracy."""
