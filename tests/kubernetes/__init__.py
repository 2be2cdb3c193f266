"""A stand-in Kubernetes cluster for tests, spoken to over HTTP by the real clients.

Why not kmock's emulator: it keeps objects, but most of what is needed here (selectors, validation, admission,
controllers, processes) would have to be put around it, in asyncio beside threads.

Simplified, compared with a real control plane:

- HTTP without TLS or protobuf (some kubectl commands send it); all kinds are v1 of their group; no OpenAPI
  (`kubectl apply` needs `--validate=false`), pagination, managedFields or JSON patch. A strategic merge patch
  is treated as a merge patch: lists are replaced. Apply never takes a field away.
- Unknown fields are always refused, as with `fieldValidation=Strict`; of several problems the first is named.
- Deployments, StatefulSets, CronJobs, Services, NetworkPolicies and Ingresses are kept, not carried out.
- Quotas have no scopes, LimitRanges only defaults, PodDisruptionBudgets only a number as minAvailable.
- The scheduler takes the first node that fits: no preferences, pod affinity, spreading or preemption.
- A container is a process on this machine: no image, no file system or network of its own, volumes are looked
  up but not mounted, no CPU limit. Memory is the sum of resident pages, so shared ones count more than once.
- A container is never restarted in place (OnFailure and Always act as Never) and no probe is asked. It is not
  process 1: a SIGTERM without a handler ends it, where in a real container it would be ignored.
- Jobs count completions without indexes; their pods carry no finalizer. A deleted Node leaves its pods.
"""

from tests.kubernetes.access import User
from tests.kubernetes.cluster import Cluster, Node
from tests.kubernetes.pods import UseReport
from tests.kubernetes.server import Request
from tests.kubernetes.store import ApiError, Object

__all__ = ["ApiError", "Cluster", "Node", "Object", "Request", "UseReport", "User"]
