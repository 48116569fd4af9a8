//! Which role a request needs: one table, and a rule for what is not in it.

use axum::http::Method;

use crate::auth::Role;

/// Routes that need no token. They say nothing secret, and are answered however much else goes on.
pub const OPEN: &[&str] =
    &["/livez", "/readyz", "/openapi.json", "/docs", "/docs/docs.js", "/docs/docs.css"];

/// Routes for every good token, whatever role it gives.
const ANY_ROLE: &[&str] = &["/whoami"];

/// Changes that are not an administrator's business.
const OPERATOR: &[(Method, &str)] = &[
    (Method::POST, "/tenants"),
    (Method::PUT, "/tenants/{slug}"),
    (Method::PATCH, "/tenants/{slug}"),
    (Method::POST, "/tenants/{slug}/reconcile"),
    (Method::POST, "/tenants/{slug}/pause"),
    (Method::POST, "/tenants/{slug}/resume"),
    (Method::POST, "/upstreams/{upstream}/check"),
];

/// The role that a request needs; none where a good token is enough. `route` is the pattern that its path matched. Whatever changes something
/// and is not listed needs the highest one, so that a route that is forgotten here is closed, not open.
pub fn needed(method: &Method, route: Option<&str>) -> Option<Role> {
    if method.is_safe() {
        let any = route.is_some_and(|route| ANY_ROLE.contains(&route));
        return (!any).then_some(Role::Reader);
    }
    let listed = |(verb, path): &(Method, &str)| verb == method && route == Some(path);
    Some(if OPERATOR.iter().any(listed) { Role::Operator } else { Role::Admin })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_listed_and_changes_something_is_for_administrators() {
        for (method, route, role) in [
            (Method::GET, Some("/tenants"), Role::Reader),
            (Method::HEAD, None, Role::Reader),
            (Method::POST, Some("/tenants"), Role::Operator),
            (Method::POST, Some("/tenants/{slug}/reconcile"), Role::Operator),
            (Method::DELETE, Some("/tenants/{slug}"), Role::Admin),
            (Method::POST, Some("/tenants/{slug}/purge"), Role::Admin),
            (Method::POST, Some("/upstreams/{upstream}/retire"), Role::Admin),
            (Method::POST, Some("/upstreams/{upstream}/check"), Role::Operator),
            (Method::POST, None, Role::Admin),
        ] {
            assert_eq!(needed(&method, route), Some(role), "{method} {route:?}");
        }
        assert_eq!(needed(&Method::GET, Some("/whoami")), None);
        assert_eq!(needed(&Method::POST, Some("/whoami")), Some(Role::Admin));
    }
}
