"""The tape of a program: the inputs and outputs of its equations in forward and backward pass."""
