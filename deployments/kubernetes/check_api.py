"""The API of the cluster that KUBECONFIG names: connecting, plain requests, and what each failure means."""

import copy
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

import kubernetes.client
import kubernetes.config
import urllib3.exceptions

from resources.errors import UserError
from resources.pods.cluster import TIMEOUT

Object: TypeAlias = dict[str, Any]

APPLY = "application/apply-patch+yaml"
_MANAGER = "evaluation-check"


class RefusedError(UserError):
    """The API server says no; `status` is what HTTP calls that."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class Api:
    """Requests by path, each bounded; UserError says in one line what went wrong."""

    def __init__(self, configuration: Any) -> None:
        self._configuration = configuration
        self.client = kubernetes.client.ApiClient(configuration)
        self._resources: dict[str, Mapping[str, Object]] = {}

    @property
    def host(self) -> str:
        """The address of the API server."""
        return str(self._configuration.host)

    def call(self, method: str, path: str, body: Object | None = None, **query: str) -> Object:
        """The answer's object. `query` becomes the query string."""
        text = self.text(method, path, body, **query)
        try:
            found = json.loads(text)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise UserError(
                f"{self.host} does not answer as a Kubernetes API server does; is the address in KUBECONFIG "
                f"right? It says: {text[:80]!r}"
            )
        return found

    def text(self, method: str, path: str, body: Object | None = None, **query: str) -> str:
        """The answer as it is. Raises RefusedError for a status that is none of success."""
        kind = APPLY if method == "PATCH" else "application/json"
        try:
            answer = self.client.call_api(
                path,
                method,
                query_params=list(query.items()),
                header_params={"Accept": "application/json, */*", "Content-Type": kind},
                body=body,
                auth_settings=["BearerToken"],
                _preload_content=False,
                _request_timeout=TIMEOUT,
                _return_http_data_only=True,
            )
        except kubernetes.client.ApiException as error:
            self._refuse(error)
        except AttributeError as error:
            # The client stumbles over its own error where TLS failed, which has no body.
            if not isinstance(error.__context__, kubernetes.client.ApiException):
                raise
            self._refuse(error.__context__)
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise UserError(
                f"{self.host} does not answer ({_why(error)}); does the cluster run, and is the address in "
                "KUBECONFIG right?"
            ) from error
        return bytes(answer.data).decode(errors="replace")

    def _refuse(self, error: Any) -> NoReturn:
        if not error.status:  # the client's way to say that TLS failed
            why = _why(error.reason).removeprefix("SSLError ")
            raise UserError(
                f"{self.host}: its certificate is not accepted ({why}); certificate-authority in KUBECONFIG "
                "must be that of this very cluster"
            ) from error
        if error.status == 401:
            raise RefusedError(
                401,
                f"{self.host} refuses the credentials in KUBECONFIG (401); they are wrong or have expired: "
                "log in again",
            ) from error
        try:
            text = str(json.loads(error.body)["message"])
        except (TypeError, ValueError, KeyError):
            text = str(error.reason)
        if error.status == 404 or error.status >= 500:
            text = f"{self.host} answers {error.status}: {text}"
        raise RefusedError(error.status, " ".join(text.split())[:500]) from error

    def resources(self, version: str) -> Mapping[str, Object]:
        """What the API has of a version of a group (``batch/v1``), by kind; nothing where it isn't there."""
        if version not in self._resources:
            path = f"/apis/{version}" if "/" in version else f"/api/{version}"
            try:
                found = self.call("GET", path)["resources"]
            except RefusedError as error:
                if error.status != 404:
                    raise
                found = []
            self._resources[version] = {entry["kind"]: entry for entry in found if "/" not in entry["name"]}
        return self._resources[version]

    def path_of(self, item: Object) -> str:
        """Where objects like this one are. Raises UserError for a kind that the cluster does not have."""
        version, kind = item["apiVersion"], item["kind"]
        found = self.resources(version).get(kind)
        if found is None:
            raise UserError(f"the cluster knows no {kind} of {version}; install what brings it")
        prefix = f"/apis/{version}" if "/" in version else f"/api/{version}"
        within = f"/namespaces/{item['metadata']['namespace']}" if found["namespaced"] else ""
        return f"{prefix}{within}/{found['name']}"

    def try_out(self, item: Object) -> None:
        """Have the server check an object and keep nothing of it. Raises UserError if it is refused."""
        self.call(
            "PATCH",
            f"{self.path_of(item)}/{item['metadata']['name']}",
            item,
            dryRun="All",
            fieldManager=_MANAGER,
            fieldValidation="Strict",
            force="true",
        )

    def create(self, item: Object, **query: str) -> None:
        """Make an object."""
        self.call("POST", self.path_of(item), item, fieldManager=_MANAGER, **query)

    def as_account(self, namespace: str, account: str) -> "Api | None":
        """The API as a service account sees it; None where no token of it can be had."""
        body = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": {"expirationSeconds": 600},
        }
        try:
            path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token"
            token = self.call("POST", path, body)["status"]["token"]
        except RefusedError:
            return None
        configuration = copy.deepcopy(self._configuration)
        # Else whoever runs this would be asked about instead.
        configuration.cert_file = configuration.key_file = configuration.refresh_api_key_hook = None
        configuration.username = configuration.password = None
        configuration.api_key, configuration.api_key_prefix = {"BearerToken": f"Bearer {token}"}, {}
        return Api(configuration)


def connect() -> Api:
    """The cluster of KUBECONFIG's current context. Raises UserError where there is none."""
    named = os.environ.get("KUBECONFIG", "")
    paths = [Path(part).expanduser() for part in (named or "~/.kube/config").split(os.pathsep) if part]
    there = [path for path in paths if path.exists()]
    if not there:
        what = (
            f"KUBECONFIG names {named}, which is not there" if named else "no KUBECONFIG, no ~/.kube/config"
        )
        raise UserError(f"{what}; set KUBECONFIG to the file that kubectl uses (kind export kubeconfig)")
    for path in there:
        try:
            path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "not UTF-8"
            raise UserError(f"KUBECONFIG: {path} can't be read ({why}); name another file") from None
    configuration = kubernetes.client.Configuration()
    configuration.retries = False  # what fails is told at once
    try:
        kubernetes.config.load_kube_config(
            os.pathsep.join(map(str, there)), client_configuration=configuration, persist_config=False
        )
    except Exception as error:  # the client raises whatever it meets in a wrong file
        named = os.pathsep.join(map(str, there))
        raise UserError(f"KUBECONFIG: {named} is no usable kubeconfig ({_why(error)})") from None
    return Api(configuration)


def _why(error: object) -> str:
    line = " ".join(str(error).split()) or type(error).__name__
    # urllib3 puts its own objects first: "HTTPConnection(...): Failed to ...".
    return line.rpartition("): ")[2][:200]
