//! Named places where a test can end the process as a power cut would.
//!
//! Set `FAILPOINTS="integration::created=return"` in a build with the feature `failpoints`, and the
//! process kills itself (SIGKILL) when it gets there; `1*off->return` lets it pass once. Without the
//! feature nothing of this exists.

use crate::terminal::say;

/// Integration: about to ask the upstream for a new resource.
pub const CREATING: &str = "integration::creating";
/// Integration: the upstream said that it made the resource.
pub const CREATED: &str = "integration::created";
/// Integration: the upstream said that it changed the resource.
pub const UPDATED: &str = "integration::updated";
/// Integration: the upstream said that it let the resource go.
pub const RELEASED: &str = "integration::released";
/// Controller: nothing is left of a tenant but its document, which is about to go.
pub const REMOVING: &str = "controller::removing";
/// Controller: a sweep has read the tenants and not yet any upstream.
pub const SWEEPING: &str = "controller::sweeping";
/// Controller: the lease was taken; nothing else has happened.
pub const CLAIMED: &str = "controller::claimed";
/// Controller: every due step has run; nothing is recorded yet.
pub const RAN: &str = "controller::ran";
/// Controller: the outcome is recorded.
pub const COMMITTED: &str = "controller::committed";

/// A place with a name.
pub fn reach(name: &str) {
    fail::fail_point!(name, |_| die(name));
    // Without failpoints the macro is empty.
    let _ = name;
}

#[allow(dead_code)] // used only where the dependency `fail` was built with failpoints
fn die(name: &str) {
    say(format_args!("failpoint {name}: killing this process"));
    let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    // SIGKILL may take a moment to arrive; nothing must happen until then.
    loop {
        std::thread::park();
    }
}
