# %% [markdown]
"""A tour of the chapter: a loss, its slope, the gradient, descent, and a network that learns.

Run it:  python examples/chapter.py
"""

# %%
import jax
import jax.numpy as jnp
import optax

import jaxnn
from jaxnn.surfaces import bowl, parabola

# %% A loss says how far a prediction is from the truth
guess = jnp.array([0.1, 0.05, 0.6, 0.0, 0.05, 0.1, 0.0, 0.1, 0.0, 0.0])
for digit in (2, 7):
    error = jaxnn.cross_entropy_error(guess, jnp.array(digit))
    print(f"cross-entropy of this guess for a {digit}: {error:.4f}")

# %% Its slope, from values alone
print(f"slope of 0.01x^2 + 0.1x at 5: {jaxnn.numerical_diff(parabola, 5):.4f}")
print(f"gradient of x0^2 + x1^2 at (3, 4): {jaxnn.numerical_gradient(bowl, jnp.array([3.0, 4.0]))}")

# %% Down the slope
end = jaxnn.gradient_descent(bowl, jnp.array([-3.0, 4.0]), lr=0.1, step_num=100)
print(f"100 steps down from (-3, 4): ({end[0]:.2e}, {end[1]:.2e})")


# %% The same, for the 3,760 parameters of a network that reads digits
def metrics(params, x, t):
    return {"accuracy": jaxnn.accuracy(jaxnn.predict(params, x), t)}


digits = jaxnn.load_digits()
print("a network learns to read 1,500 digits:")
result = jaxnn.fit(
    jaxnn.loss,
    jaxnn.init_network(jax.random.key(0), (64, 50, 10)),
    (digits.x_train, digits.t_train),
    optax.sgd(0.5),
    key=jax.random.key(1),
    epochs=100,
    measuring=jaxnn.Measuring(test=(digits.x_test, digits.t_test), metrics=metrics),
)
print(f"after 1,500 steps: test accuracy {result.history.metrics['test_accuracy'][-1]:.3f}")
