//! How a tenant's group is named: the same in Authentik, which has it, and in oCIS, which is told.

use std::fmt;

use crate::tenant::Slug;

/// How a tenant's group is named: a text with `{slug}` in it, such as `tenant-{slug}`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupTemplate(String);

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidGroupTemplate {
    #[error("must contain {{slug}}, or all tenants would share one group")]
    NoSlug,
    #[error("must not hold other placeholders than {{slug}}")]
    Placeholder,
    #[error("must not begin or end with a blank (Authentik removes them), or hold control characters")]
    Blank,
}

impl GroupTemplate {
    const SLUG: &'static str = "{slug}";

    pub fn parse(text: &str) -> Result<Self, InvalidGroupTemplate> {
        let rest = text.replacen(Self::SLUG, "", 1);
        if rest.len() == text.len() {
            Err(InvalidGroupTemplate::NoSlug)
        } else if rest.contains(['{', '}']) {
            Err(InvalidGroupTemplate::Placeholder)
        } else if text.trim() != text || text.chars().any(char::is_control) {
            Err(InvalidGroupTemplate::Blank)
        } else {
            Ok(Self(text.to_owned()))
        }
    }

    /// Whether a group of this name can be a tenant's.
    pub(super) fn may_name(&self, group: &str) -> bool {
        let Some((before, after)) = self.0.split_once(Self::SLUG) else { return false };
        let rest = group.strip_prefix(before).and_then(|rest| rest.strip_suffix(after));
        rest.is_some_and(|slug| !slug.is_empty())
    }

    pub(super) fn name_for(&self, slug: &Slug) -> String {
        self.0.replace(Self::SLUG, slug.as_str())
    }
}

impl fmt::Display for GroupTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
