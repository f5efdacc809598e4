"""The keys of a policy file, one file each: schema, meaning, faults and words. Adding one is a line here."""

from typing import Any

from qgraph.policy.key import Key
from qgraph.policy.keys.calibrate import CALIBRATE_KEY
from qgraph.policy.keys.claims import CLAIMS_KEY
from qgraph.policy.keys.coverage import COVERAGE_KEY
from qgraph.policy.keys.extends import EXTENDS_KEY
from qgraph.policy.keys.format import FORMATS_KEY
from qgraph.policy.keys.functions import FUNCTIONS_KEY
from qgraph.policy.keys.groups import GROUPS_KEY
from qgraph.policy.keys.match import KEEP_KEY
from qgraph.policy.keys.monitor import MONITORS_KEY
from qgraph.policy.keys.name import NAME_KEY
from qgraph.policy.keys.operand import TRANSFORMS_KEY
from qgraph.policy.keys.optimizer import OPTIMIZER_KEY
from qgraph.policy.keys.page import PAGE_KEY
from qgraph.policy.keys.parameters import PARAMETERS_KEY
from qgraph.policy.keys.ragged import RAGGED_KEY
from qgraph.policy.keys.rules import RULES_KEY
from qgraph.policy.keys.schedule import SCHEDULE_KEY
from qgraph.policy.keys.source import SOURCE_KEY
from qgraph.policy.keys.stash import STASH_KEY
from qgraph.policy.keys.version import VERSION_KEY

# In the order in which files write them, and in which their faults are told.
KEYS: tuple[Key[Any], ...] = (
    VERSION_KEY,
    NAME_KEY,
    SOURCE_KEY,
    EXTENDS_KEY,
    PAGE_KEY,
    CLAIMS_KEY,
    RAGGED_KEY,
    COVERAGE_KEY,
    FORMATS_KEY,
    TRANSFORMS_KEY,
    GROUPS_KEY,
    KEEP_KEY,
    RULES_KEY,
    OPTIMIZER_KEY,
    PARAMETERS_KEY,
    STASH_KEY,
    FUNCTIONS_KEY,
    CALIBRATE_KEY,
    SCHEDULE_KEY,
    MONITORS_KEY,
)
