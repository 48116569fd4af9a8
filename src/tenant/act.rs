//! What a step did to a resource in its upstream. History, log and metrics are derived from it, so that they
//! cannot tell different stories.

use std::fmt;

use super::{EventKind, Field};

/// One change of one resource.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Act {
    pub deed: Deed,
    pub resource: Resource,
}

/// A resource, as people find it in the upstream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resource {
    pub name: String,
    pub id: String,
}

/// What was done to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Deed {
    Created,
    /// Made again, because the one that was recorded, by this id, is gone; what people kept in it may be
    /// lost.
    Recreated {
        lost: String,
    },
    /// Taken over; tenantry had not made it for this tenant.
    Adopted(Vec<Field>),
    /// Taken back into use by the tenant that had it before.
    Restored(Vec<Field>),
    /// What was changed in the upstream was undone.
    Repaired(Vec<Field>),
    /// Made to match an edit.
    Updated(Vec<Field>),
    /// Let go: the service is off, the tenant is to go, or it has moved on.
    LetGo(Fate),
    /// A second one with the tenant's mark was put out of use.
    TwinLetGo(Fate),
}

/// What becomes of a resource that is let go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It stays, marked as off or released.
    Kept(&'static str),
    /// It was adopted, and says again what it said before.
    PutBack,
    /// It can be restored.
    Disabled,
    /// It is gone for ever.
    Deleted,
}

/// The kinds of what is done to a resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ActKind {
    Created,
    Recreated,
    Adopted,
    Restored,
    Repaired,
    Updated,
    Released,
    Disabled,
    Deleted,
    TwinDisabled,
}

impl ActKind {
    pub const ALL: [Self; 10] = [
        Self::Created,
        Self::Recreated,
        Self::Adopted,
        Self::Restored,
        Self::Repaired,
        Self::Updated,
        Self::Released,
        Self::Disabled,
        Self::Deleted,
        Self::TwinDisabled,
    ];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Recreated => "recreated",
            Self::Adopted => "adopted",
            Self::Restored => "restored",
            Self::Repaired => "repaired",
            Self::Updated => "updated",
            Self::Released => "released",
            Self::Disabled => "disabled",
            Self::Deleted => "deleted",
            Self::TwinDisabled => "twin_disabled",
        }
    }
}

impl Deed {
    /// Its kind, in logs and metrics.
    pub const fn act(&self) -> ActKind {
        match self {
            Self::Created => ActKind::Created,
            Self::Recreated { .. } => ActKind::Recreated,
            Self::Adopted(_) => ActKind::Adopted,
            Self::Restored(_) => ActKind::Restored,
            Self::Repaired(_) => ActKind::Repaired,
            Self::Updated(_) => ActKind::Updated,
            Self::LetGo(Fate::Kept(_) | Fate::PutBack) => ActKind::Released,
            Self::LetGo(Fate::Disabled) => ActKind::Disabled,
            Self::LetGo(Fate::Deleted) => ActKind::Deleted,
            Self::TwinLetGo(_) => ActKind::TwinDisabled,
        }
    }

    /// What the history says it was; nothing of an update, whose edit is told.
    pub const fn kind(&self) -> Option<EventKind> {
        match self {
            Self::Created => Some(EventKind::ResourceCreated),
            Self::Recreated { .. } => Some(EventKind::ResourceRecreated),
            Self::Adopted(_) => Some(EventKind::ResourceAdopted),
            Self::Restored(_) => Some(EventKind::ResourceRestored),
            Self::Repaired(_) => Some(EventKind::DriftRepaired),
            Self::Updated(_) => None,
            Self::LetGo(Fate::Kept(_) | Fate::PutBack | Fate::Disabled) => {
                Some(EventKind::ResourceReleased)
            }
            Self::LetGo(Fate::Deleted) => Some(EventKind::ResourceDeleted),
            Self::TwinLetGo(_) => Some(EventKind::TwinDisabled),
        }
    }

    /// Whether a person should look at it.
    pub const fn is_alarming(&self) -> bool {
        matches!(self, Self::Recreated { .. } | Self::TwinLetGo(_))
    }
}

impl fmt::Display for Act {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { deed, resource } = self;
        match deed {
            Deed::Created => write!(f, "{resource} was created"),
            Deed::Recreated { lost } => write!(
                f,
                "{resource} was created, because {lost}, which was recorded, is gone; what people kept in \
                 it may be lost"
            ),
            Deed::Adopted(fields) => write!(f, "{resource} was taken over{}", Changes(fields)),
            Deed::Restored(fields) => write!(f, "{resource} is in use again{}", Changes(fields)),
            Deed::Repaired(fields) => write!(f, "{resource} was put back{}", Changes(fields)),
            Deed::Updated(fields) => write!(f, "{resource} was changed{}", Changes(fields)),
            Deed::LetGo(fate) => write!(f, "{resource} {fate}"),
            Deed::TwinLetGo(fate) => write!(f, "{resource}, a second one of this tenant, {fate}"),
        }
    }
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} ({})", self.name, self.id)
    }
}

impl fmt::Display for Fate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kept(usage) => write!(f, "is kept, marked {usage}"),
            Self::PutBack => f.write_str("is left as it was before it was adopted"),
            Self::Disabled => f.write_str("was disabled; it can be restored"),
            Self::Deleted => f.write_str("was deleted"),
        }
    }
}

/// What differed, after a colon.
struct Changes<'a>(&'a [Field]);

impl fmt::Display for Changes<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, field) in self.0.iter().enumerate() {
            write!(f, "{}{field}", if n == 0 { ": " } else { "; " })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_act_says_what_was_done_to_which_resource_and_why_it_matters() {
        let resource = Resource { name: "tenant-acme".into(), id: "7".into() };
        let said = |deed| Act { deed, resource: resource.clone() }.to_string();
        let quota = vec![Field::new("quota", "7", "5")];
        assert_eq!(
            said(Deed::Recreated { lost: "3".into() }),
            "\"tenant-acme\" (7) was created, because 3, which was recorded, is gone; what people kept in \
             it may be lost"
        );
        assert_eq!(
            said(Deed::Adopted(quota)),
            "\"tenant-acme\" (7) was taken over: quota from \"7\" to \"5\""
        );
        assert_eq!(
            said(Deed::LetGo(Fate::Kept("released"))),
            "\"tenant-acme\" (7) is kept, marked released"
        );
    }
}
