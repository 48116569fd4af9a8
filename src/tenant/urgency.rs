//! The order in which tenants get a worker.

/// How urgent a tenant's work is; the most urgent first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Urgency {
    /// A client of the API waits for it now.
    Waited,
    /// A person asked for it.
    Requested,
    /// A new tenant, or a changed desired state.
    New,
    /// A failed step's turn has come again.
    Retry,
    /// The routine re-check of a converged tenant.
    Resync,
}

impl Urgency {
    /// All of them, in order.
    pub const ALL: [Self; 5] = [Self::Waited, Self::Requested, Self::New, Self::Retry, Self::Resync];

    /// As metrics call it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Waited => "waited",
            Self::Requested => "requested",
            Self::New => "new",
            Self::Retry => "retry",
            Self::Resync => "resync",
        }
    }
}
