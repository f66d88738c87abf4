//! The gate of groups with limits: any worker admits what there is room for, one at a time. Places are counted where the
//! work is, so nothing here has to be right for the limits to hold, only awake for work to go on.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rand::RngExt;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::groups::{Asked, Pass};
use super::worker::Shared;

/// What a worker's parts and its passes tell each other.
#[derive(Default)]
pub(super) struct Gate {
    rung: Notify,
    /// Something was admitted.
    pub admitted: Notify,
    /// Whether some group has limits, as of the last pass.
    limits: AtomicBool,
}

impl Gate {
    /// A place may have become free, or something may have come to wait for one.
    pub fn ring(&self) {
        if self.is_needed() {
            self.rung.notify_one();
        }
    }

    /// Whether some group has limits, as of the last pass.
    pub fn is_needed(&self) -> bool {
        self.limits.load(Ordering::Relaxed)
    }
}

/// A pass admits at most so many of a group.
const MOST: i32 = 1_000;
/// How often a pass comes unasked, for places that others gave back.
const POLL: Duration = Duration::from_millis(100);
/// And while no group has limits: so soon a first limit is known here.
const IDLE: Duration = Duration::from_millis(400);
/// Whoever was asked to come and found somebody else at it comes again so soon.
const BUSY: Duration = Duration::from_millis(3);
/// Ends come in handfuls.
const FEW: Duration = Duration::from_millis(1);
/// What rates and holds no longer need is forgotten so often.
const TIDY: Duration = Duration::from_secs(5);
/// The pause after a failed call.
const TROUBLE: Duration = Duration::from_millis(250);

/// Admits until `stop`.
pub(super) async fn admit(shared: Arc<Shared>, stop: CancellationToken) {
    let mut pause = Duration::ZERO;
    let (mut looked, mut tidied): (Option<Instant>, Option<Instant>) = (None, None);
    let mut from = None;
    loop {
        let nap = pause.mul_f64(rand::rng().random_range(0.8..1.2));
        let rung = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = shared.gate.rung.notified() => true,
            () = tokio::time::sleep(nap) => false,
        };
        let look = looked.is_none_or(|at| at.elapsed() >= POLL);
        let tidy = tidied.is_none_or(|at| at.elapsed() >= TIDY);
        let asked = Asked { most: MOST, look, tidy, from: from.clone() };
        let Some(pass) = stop.run_until_cancelled(shared.groups.admit(asked)).await else { return };
        pause = match pass {
            Ok(pass) => {
                if look && !pass.busy {
                    looked = (pass.strays == 0).then(Instant::now);
                }
                if tidy && !pass.busy {
                    tidied = Some(Instant::now());
                }
                let pause = after(&shared, &pass, rung);
                // Who found somebody else at it goes on where it was, or the last groups never have their turn.
                if !pass.busy {
                    from = pass.go_on;
                }
                pause
            }
            Err(error) => {
                shared.failed("admit", &error);
                warn!(%error, "nothing can be admitted to groups with limits; trying again");
                TROUBLE
            }
        };
        if stop.run_until_cancelled(tokio::time::sleep(FEW)).await.is_none() {
            return;
        }
    }
}

/// When to come again.
fn after(shared: &Shared, pass: &Pass, rung: bool) -> Duration {
    shared.gate.limits.store(pass.gates, Ordering::Relaxed);
    shared.metrics.groups.passed(pass);
    // What strays were in front of may have been out of a claim's reach.
    if pass.admitted > 0 || pass.strays > 0 {
        shared.gate.admitted.notify_one();
    }
    match *pass {
        Pass { busy: true, .. } if rung => BUSY,
        Pass { strays, admitted, .. } if strays > 0 || admitted >= i64::from(MOST) => Duration::ZERO,
        Pass { go_on: Some(_), .. } => Duration::ZERO,
        Pass { gates: true, wait_ms: Some(ms), .. } => POLL.min(Duration::from_secs_f64(ms.clamp(0.0, 1e6) / 1_000.0)),
        Pass { gates: true, .. } => POLL,
        _ => IDLE,
    }
}
