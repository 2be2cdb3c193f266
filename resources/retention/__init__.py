"""What of the results is kept in full, without its texts, or not at all; docs/retention.md.

`take_inventory` reads what there is, `plan` decides from that alone, `apply` does it and writes down what it
did.
"""

from resources.retention.applying import Applied, apply, audit_lines, last_audits
from resources.retention.inventory import measured, take_inventory
from resources.retention.policy import Action, Inventory, Plan, RetentionPolicy, load_policy, plan

__all__ = [
    "Action",
    "Applied",
    "Inventory",
    "Plan",
    "RetentionPolicy",
    "apply",
    "audit_lines",
    "last_audits",
    "load_policy",
    "measured",
    "plan",
    "take_inventory",
]
