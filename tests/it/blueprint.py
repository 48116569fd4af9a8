"""Holds a blueprint against Authentik's published API: blueprint.py FILE. Each entry's attributes are the fields of a
request, so that an unknown field, a wrong value and a missing reference show. Prints the entries as JSON."""

import importlib
import json
import sys
import uuid

import yaml

# What a blueprint may set, and the request of the API with the same fields. The fields beside are of blueprints alone.
MODELS = {
    "authentik_core.application": ("application_request.ApplicationRequest", {}),
    "authentik_core.group": ("group_request.GroupRequest", {}),
    "authentik_core.token": ("token_request.TokenRequest", {"key": str}),
    "authentik_core.user": ("user_request.UserRequest", {}),
    "authentik_providers_oauth2.oauth2provider": ("o_auth2_provider_request.OAuth2ProviderRequest", {}),
    "authentik_rbac.role": ("role_request.RoleRequest", {"permissions": list}),
}
# Their keys are numbers, those of all others are UUIDs.
NUMBERED = ("authentik_core.user", "authentik_providers_oauth2.oauth2provider")


class Reference:
    def __init__(self, kind, value):
        self.kind, self.value = kind, value


class Loader(yaml.SafeLoader):
    pass


def construct(loader, node):
    if isinstance(node, yaml.ScalarNode):
        return Reference(node.tag, loader.construct_scalar(node))
    return Reference(node.tag, loader.construct_sequence(node, deep=True))


for tag in ("!KeyOf", "!Find", "!Env", "!Format"):
    Loader.add_constructor(tag, construct)


def key_of(model):
    return 1 if model in NUMBERED else uuid.UUID(int=1)


def resolve(value, models):
    """The value with each reference as something of the right type."""
    if isinstance(value, dict):
        return {name: resolve(of, models) for name, of in value.items()}
    if isinstance(value, list):
        return [resolve(of, models) for of in value]
    if not isinstance(value, Reference):
        return value
    match value.kind:
        case "!KeyOf":
            if value.value not in models:
                raise SystemExit(f"!KeyOf {value.value}: no entry before has this id")
            return key_of(models[value.value])
        case "!Find":
            model, *conditions = value.value
            if not all(len(condition) == 2 for condition in conditions):
                raise SystemExit(f"!Find {model}: a condition is a field and a value")
            return key_of(model)
        case "!Env":
            return f"${value.value}"
        case "!Format":
            text, *parts = value.value
            return text % tuple(resolve(parts, models))


def main():
    with open(sys.argv[1]) as file:
        blueprint = yaml.load(file, Loader)
    if blueprint["version"] != 1 or not blueprint["metadata"]["name"]:
        raise SystemExit("a blueprint has version 1 and a name")
    models, wrong, shown = {}, [], []
    for entry in blueprint["entries"]:
        model = entry.pop("model")
        unknown = entry.keys() - {"id", "identifiers", "attrs", "state", "conditions", "permissions"}
        if unknown:
            wrong.append(f"{model}: an entry has no {', '.join(unknown)}")
        fields = resolve({**entry.get("identifiers", {}), **entry.get("attrs", {})}, models)
        shown.append({"model": model, **fields})
        if model == "authentik_blueprints.metaapplyblueprint":
            if not isinstance(fields["identifiers"].get("name"), str) or fields.get("required") is not True:
                wrong.append(f"{model}: names the blueprint that is required")
            continue
        if not entry.get("identifiers"):
            wrong.append(f"{model}: without identifiers each application would make another")
        module, name = MODELS[model][0].split(".")
        request = getattr(importlib.import_module(f"authentik_client.models.{module}"), name)
        own = MODELS[model][1]
        for field in [field for field in fields if field in own]:
            if not isinstance(fields[field], own[field]):
                wrong.append(f"{model}: {field} is no {own[field].__name__}")
        sent = {field: value for field, value in fields.items() if field not in own}
        for field in sent.keys() - request.model_fields.keys():
            wrong.append(f"{model} {fields.get('name')}: there is no field {field}")
        if model == "authentik_core.user":
            sent.setdefault("name", "")
        try:
            request.model_validate(sent)
        except ValueError as error:
            wrong.append(f"{model}: {error}")
        if "id" in entry:
            models[entry["id"]] = model
    if wrong:
        raise SystemExit("\n".join(wrong))
    print(json.dumps(shown, default=str))


main()
