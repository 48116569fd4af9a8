#!/usr/bin/env python3
"""Makes tenantry's account and API key in Stalwart, with no more rights than it needs, and writes what is secret into
files that only tenantry reads. It may be repeated: what is there is left as it is."""

import base64
import json
import os
import sys
import urllib.error
import urllib.request
from pathlib import Path

ACCOUNT = "tenantry"
PERMISSIONS = [
    "authenticate",
    "sysDomainGet",
    "sysDomainQuery",
    "sysDomainCreate",
    "sysDomainUpdate",
    "sysDomainDestroy",
    "sysDkimSignatureQuery",
    "sysDkimSignatureDestroy",
]
KEY = "stalwart-api-token"
# The file, and the variable that holds it.
GIVEN = {
    "mongodb-uri": "MONGODB_URI",
    "authentik-api-token": "AUTHENTIK_API_TOKEN",
    "ocis-oidc-password": "OCIS_OIDC_PASSWORD",
}


def variable(name: str) -> str:
    value = os.environ.get(name, "")
    if not value:
        sys.exit(f"{name} is not set")
    return value


def administrator() -> str:
    """The login that Stalwart gave when it was set up, as `name:password`."""
    path = Path(variable("STALWART_LOGIN"))
    try:
        answer = json.loads(path.read_text())
        login = answer["methodResponses"][0][1]["updated"]["singleton"]
        return f"{login['username']}:{login['secret']}"
    except (OSError, ValueError, LookupError, TypeError) as error:
        sys.exit(f"{path} does not hold Stalwart's answer with the administrator's login: {error!r}")


def jmap(method: str, arguments: dict) -> dict:
    """The answer to one call. Refusals come with status 200 as well."""
    body = {"using": ["urn:ietf:params:jmap:core", "urn:stalwart:jmap"], "methodCalls": [[method, arguments, "0"]]}
    request = urllib.request.Request(
        variable("STALWART_URL") + "/jmap",
        json.dumps(body).encode(),
        {
            "Content-Type": "application/json",
            "Authorization": "Basic " + base64.b64encode(administrator().encode()).decode(),
        },
    )
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            name, result, _ = json.load(answer)["methodResponses"][0]
    except urllib.error.HTTPError as error:
        sys.exit(f"Stalwart refused {method} with {error.code}: {error.read().decode(errors='replace')[:500]}")
    except (OSError, ValueError, LookupError) as error:
        sys.exit(f"Stalwart did not answer {method}: {error!r}")
    if name == "error":
        sys.exit(f"Stalwart refused {method}: {json.dumps(result)}")
    return result


def made(method: str, arguments: dict, properties: dict) -> dict:
    result = jmap(method, {**arguments, "create": {"new": properties}})
    if "new" not in (result.get("created") or {}):
        sys.exit(f"{method} made nothing: {json.dumps(result.get('notCreated', result))}")
    return result["created"]["new"]


def account() -> str:
    """The id of tenantry's account, in the operator's own domain: an account keeps its domain from being removed."""
    name = variable("STALWART_DEFAULT_DOMAIN")
    domains = jmap("x:Domain/query", {"filter": {"name": name}})["ids"]
    if not domains:
        sys.exit(f"Stalwart has no domain {name}; it is the default domain that it was set up with")
    found = jmap("x:Account/query", {"filter": {"domainId": domains[0], "name": ACCOUNT}})["ids"]
    if found:
        return found[0]
    permissions = {
        "@type": "Replace",
        "disabledPermissions": {},
        "enabledPermissions": dict.fromkeys(PERMISSIONS, True),
    }
    properties = {"@type": "User", "name": ACCOUNT, "domainId": domains[0], "permissions": permissions}
    return made("x:Account/set", {}, properties)["id"]


def write(path: Path, secret: str) -> None:
    """Whole or not at all, and readable by its owner alone."""
    new = path.with_suffix(".new")
    new.unlink(missing_ok=True)
    with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o400), "w") as file:
        file.write(secret)
    owner = int(os.environ.get("OWNER", os.getuid()))
    if owner != os.getuid():
        os.chown(new, owner, owner)
    new.rename(path)


def main() -> None:
    folder = Path(variable("SECRETS"))
    for file, name in GIVEN.items():
        write(folder / file, variable(name))
    key = folder / KEY
    if key.exists():
        print(f"{key} is there already; to make another key, remove it")
    else:
        properties = {"description": ACCOUNT, "permissions": {"@type": "Inherit"}}
        # An account with these rights cannot make its own key.
        write(key, made("x:ApiKey/set", {"accountId": account()}, properties)["secret"])
        print(f"made a key of the account {ACCOUNT} in Stalwart")
    print(f"tenantry's secrets are in {folder}")


main()
