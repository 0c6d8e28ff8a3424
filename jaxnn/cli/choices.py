"""The names that the command line accepts, available before JAX is imported."""

OPTIMIZERS = ("sgd", "momentum", "adagrad", "rmsprop", "adam")
ACTIVATIONS = ("sigmoid", "relu", "tanh", "gelu", "silu", "softplus", "step")
FIGURES = (
    *("losses", "loss_and_accuracy", "activations", "derivative", "step_errors", "gradient"),
    *("descent", "learning_rates", "zero_gradients", "training", "overfitting", "gradients"),
    *("mistakes", "evidence", "speed", "flat_places", "weight_gradient", "film", "slider"),
)
