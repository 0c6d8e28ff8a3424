# Every public name: what type checkers see, and what `__init__.py` looks names up in.
from jaxnn import figures as figures
from jaxnn import plots as plots
from jaxnn import surfaces as surfaces
from jaxnn.checking.check import assert_gradient as assert_gradient
from jaxnn.checking.check import check_gradient as check_gradient
from jaxnn.checking.report import GradientError as GradientError
from jaxnn.checking.report import GradientReport as GradientReport
from jaxnn.data import (
    Digits as Digits,
)
from jaxnn.data import (
    load_digits as load_digits,
)
from jaxnn.data import (
    load_mnist as load_mnist,
)
from jaxnn.data import (
    one_hot as one_hot,
)
from jaxnn.data import (
    sample_batch as sample_batch,
)
from jaxnn.descent import (
    DescentPath as DescentPath,
)
from jaxnn.descent import (
    DivergenceWarning as DivergenceWarning,
)
from jaxnn.descent import (
    Minimum as Minimum,
)
from jaxnn.descent import (
    Stop as Stop,
)
from jaxnn.descent import (
    descent_path as descent_path,
)
from jaxnn.descent import (
    gradient_descent as gradient_descent,
)
from jaxnn.descent import (
    minimize as minimize,
)
from jaxnn.losses import (
    accuracy as accuracy,
)
from jaxnn.losses import (
    cross_entropy_error as cross_entropy_error,
)
from jaxnn.losses import (
    mean_squared_error as mean_squared_error,
)
from jaxnn.losses import (
    softmax_cross_entropy as softmax_cross_entropy,
)
from jaxnn.network import init_network as init_network
from jaxnn.network import loss as loss
from jaxnn.network import predict as predict
from jaxnn.numerical.differences import (
    directional_derivative as directional_derivative,
)
from jaxnn.numerical.differences import (
    numerical_diff as numerical_diff,
)
from jaxnn.numerical.differences import (
    numerical_grad as numerical_grad,
)
from jaxnn.numerical.differences import (
    numerical_gradient as numerical_gradient,
)
from jaxnn.numerical.differences import (
    numerical_hessian as numerical_hessian,
)
from jaxnn.numerical.differences import (
    numerical_jacobian as numerical_jacobian,
)
from jaxnn.numerical.differences import (
    partial_derivative as partial_derivative,
)
from jaxnn.training.checkpoint import (
    Checkpoint as Checkpoint,
)
from jaxnn.training.checkpoint import (
    load_checkpoint as load_checkpoint,
)
from jaxnn.training.checkpoint import (
    save_checkpoint as save_checkpoint,
)
from jaxnn.training.fit import fit as fit
from jaxnn.training.history import Fit as Fit
from jaxnn.training.history import History as History
from jaxnn.training.history import Status as Status
from jaxnn.training.progress import (
    Progress as Progress,
)
from jaxnn.training.progress import (
    progress_log as progress_log,
)
from jaxnn.training.progress import (
    show_progress as show_progress,
)
from jaxnn.training.sweep import sweep as sweep

__version__: str
