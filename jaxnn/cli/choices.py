"""What may be chosen by name at a shell, known before JAX is imported."""

OPTIMIZERS = ("sgd", "momentum", "adagrad", "rmsprop", "adam")
ACTIVATIONS = ("sigmoid", "relu", "tanh", "gelu", "silu", "softplus", "step")
