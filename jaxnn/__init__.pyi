# Every public name: what type checkers see, and what `__init__.py` looks names up in.
from jaxnn import figures as figures, plots as plots, surfaces as surfaces
from jaxnn.checking.check import (
    assert_gradient as assert_gradient,
    check_gradient as check_gradient,
)
from jaxnn.checking.evidence import Verdict as Verdict
from jaxnn.checking.explain import Explanation as Explanation, explain as explain
from jaxnn.checking.findings import (
    Birth as Birth,
    DigitsLost as DigitsLost,
    Entry as Entry,
    LeafReport as LeafReport,
    RuleReport as RuleReport,
    SourceLine as SourceLine,
)
from jaxnn.checking.report import GradientError as GradientError, GradientReport as GradientReport
from jaxnn.checking.watched import WatchReport as WatchReport, watching as watching
from jaxnn.data import (
    Digits as Digits,
    load_digits as load_digits,
    load_mnist as load_mnist,
    one_hot as one_hot,
    sample_batch as sample_batch,
)
from jaxnn.descent import (
    DescentPath as DescentPath,
    DivergenceWarning as DivergenceWarning,
    Minimum as Minimum,
    Stop as Stop,
    descent_path as descent_path,
    gradient_descent as gradient_descent,
    minimize as minimize,
)
from jaxnn.losses import (
    accuracy as accuracy,
    cross_entropy_error as cross_entropy_error,
    mean_squared_error as mean_squared_error,
    softmax_cross_entropy as softmax_cross_entropy,
)
from jaxnn.network import init_network as init_network, loss as loss, predict as predict
from jaxnn.numerical.differences import (
    directional_derivative as directional_derivative,
    numerical_diff as numerical_diff,
    numerical_grad as numerical_grad,
    numerical_gradient as numerical_gradient,
    numerical_hessian as numerical_hessian,
    numerical_jacobian as numerical_jacobian,
    partial_derivative as partial_derivative,
)
from jaxnn.training.checkpoint import (
    Checkpoint as Checkpoint,
    load_checkpoint as load_checkpoint,
    save_checkpoint as save_checkpoint,
)
from jaxnn.training.fit import fit as fit
from jaxnn.training.history import (
    Fit as Fit,
    History as History,
    Status as Status,
    Trained as Trained,
)
from jaxnn.training.options import (
    Feeding as Feeding,
    Measuring as Measuring,
    Reporting as Reporting,
    Saving as Saving,
    Start as Start,
)
from jaxnn.training.progress import (
    Progress as Progress,
    progress_log as progress_log,
    show_progress as show_progress,
)
from jaxnn.training.sweep import sweep as sweep
from jaxnn.training.train import train as train

__version__: str
