//! What `--help` says below the options: examples, formats and exit codes.

pub const EXIT_CODES: &str = "\
Exit codes:
  0 done   1 failed   2 wrong command line or document   3 no such tenant
  4 conflict, or another client was quicker   5 not authorized   6 not in time
  7 `--exit-code`: something would be changed

Environment:
  TENANTRY_CONTEXT, TENANTRY_CONFIG, or TENANTRY_URL with TENANTRY_TOKEN or
  TENANTRY_TOKEN_FILE; EXTRA_CA_FILE, NO_COLOR";

pub const TENANTS_EXAMPLES: &str = "\
Examples:
  tenantry tenants create acme --name 'Acme GmbH' --domain acme.test --quota 10GB --wait
  tenantry tenants get -o wide
  tenantry tenants describe acme
  tenantry tenants edit acme --quota 20GB --disable ocis
  tenantry tenants plan acme --wait
  tenantry tenants wait acme --for=ready --timeout 60s
  tenantry tenants get --ready=false                                      # what is wrong
  tenantry tenants get --upstream ocis=error -o name | xargs -n 1 tenantry tenants reconcile";

pub const APPLY_HELP: &str = "\
A document is YAML or JSON and describes one tenant, with the fields of the API:

  slug: acme
  name: Acme GmbH
  domain: acme.test               # without it, no mail
  quota: { storageBytes: 10000000000 }
  services: { stalwart: false }   # those that are not named are on

A field that is absent gets its default, but for paused: a tenant that a
person paused stays paused. A file may hold many documents, with --- between
them. All are checked before the first is sent. What `tenantry export` and
`tenantry tenants get -o yaml` print are such documents.

Examples:
  tenantry apply -f acme.yaml --wait
  tenantry apply -f tenants/ --dry-run
  generate-tenants | tenantry apply -f -
  tenantry apply -f team/ --prune --selector 'team-*'   # and delete the others";

pub const DIFF_EXAMPLES: &str = "\
Examples:
  tenantry diff -f tenants/
  tenantry diff -f tenants/ --exit-code || echo 'something differs'";

pub const EXPORT_EXAMPLES: &str = "\
Examples:
  tenantry export > fleet.yaml
  tenantry export -q team- -o json | jq -c 'select(.domain == null)'
  tenantry import fleet.yaml --dry-run
  tenantry apply -f fleet.yaml      # the same, and what differs is edited";

pub const CONTEXT_HELP: &str = "\
Contexts stand in ~/.config/tenantry/config.toml (TENANTRY_CONFIG is another place):

  [contexts.prod]
  url = \"https://tenantry.acme.test\"
  ca_file = \"/etc/ssl/acme.pem\"       # if the system does not know it
  [contexts.prod.login]               # a person: tenantry login
  issuer = \"https://id.acme.test/application/o/tenantry/\"
  client_id = \"tenantry\"

  [contexts.nightly]
  url = \"https://tenantry.acme.test\"
  token_file = \"/run/secrets/token\"   # or a service, by client credentials:
  # [contexts.nightly.client]
  # token_url = \"https://id.acme.test/application/o/token/\"
  # client_id = \"tenantry\"
  # client_secret_file = \"/run/secrets/client\"

Flags and variables come before the context. Its token goes to its own url only.

Examples:
  tenantry context use prod
  tenantry login
  tenantry whoami
  tenantry tenants get --context nightly";

pub const READY_HELP: &str = "\
It asks /readyz, and needs no token. For the health check of a container:
  HEALTHCHECK CMD [\"/usr/local/bin/tenantry\", \"ready\"]";

pub const STOP_EXAMPLES: &str = "\
Examples:
  tenantry stop                      # nothing is written to any upstream any more
  tenantry stop --upstream ocis
  tenantry start";
