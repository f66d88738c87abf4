//! What happens after an attempt: again after a while, or never again. Pure, so that both sides and the
//! comparator come to the same answer.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::interaction::names;

/// Retries and time-outs of one interaction, in the wire shape of the API.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Policy {
    /// Attempts in all, the first included. At least 1.
    pub max_attempts: i32,
    /// How long to wait between two attempts.
    pub backoff: Backoff,
    /// Due but not started for so long: it expires. Absent: it waits for ever.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start_timeout_ms: Option<u64>,
    /// One attempt may take so long.
    pub run_timeout_ms: u64,
    /// An in-process handler must report progress this often. Absent: it need not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub heartbeat_timeout_ms: Option<u64>,
    /// No attempt begins later than this after the interaction was due.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub give_up_after_ms: Option<u64>,
    /// What follows an attempt of which nobody knows whether it had its effect: `retry`, with the same idempotency key, or
    /// `park`, until a person has looked.
    #[serde(skip_serializing_if = "OnUnknown::is_retry")]
    pub on_unknown: OnUnknown,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            max_attempts: 5,
            backoff: Backoff::default(),
            start_timeout_ms: None,
            run_timeout_ms: 60_000,
            heartbeat_timeout_ms: None,
            give_up_after_ms: None,
            on_unknown: OnUnknown::Retry,
        }
    }
}

names! {
    /// What follows an attempt whose effect is unknown.
    #[derive(Default)]
    OnUnknown {
        /// Another attempt under the same idempotency key, as after any failure that is worth one.
        #[default]
        Retry = "retry",
        /// Nothing, until a person has said what came of it.
        Park = "park",
    }
}

impl OnUnknown {
    fn is_retry(&self) -> bool {
        *self == OnUnknown::Retry
    }
}

names! {
    /// Why it is unknown whether an attempt had its effect.
    Doubt {
        /// The runner's connection broke after the request was sent, or in the middle of the answer.
        Connection = "connection",
        /// It was cut at its run time-out.
        RunTimeout = "run_timeout",
        /// It was cut at its heartbeat time-out.
        HeartbeatTimeout = "heartbeat_timeout",
        /// Its worker died, stalled past its lease, or was stopped.
        Worker = "worker",
    }
}

/// The wait before each further attempt: growing, or listed one by one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(untagged)]
pub enum Backoff {
    /// `initial * factor^(n-1)`, at most `max`, then moved by up to `jitter` of itself either way.
    Exponential(Exponential),
    /// The n-th wait; the last one repeats.
    Listed(Listed),
}

/// Growing waits.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Exponential {
    /// The first wait.
    pub initial_ms: u64,
    /// What each further wait is multiplied with. At least 1.
    pub factor: f64,
    /// The longest wait.
    pub max_ms: u64,
    /// 0 to 1: the share of the wait by which it is moved at most.
    pub jitter: f64,
}

/// Waits listed one by one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Listed {
    /// In order; not empty.
    pub delays_ms: Vec<u64>,
}

impl Default for Exponential {
    fn default() -> Self {
        Self { initial_ms: 1_000, factor: 2.0, max_ms: 300_000, jitter: 0.1 }
    }
}

impl Default for Backoff {
    fn default() -> Self {
        Backoff::Exponential(Exponential::default())
    }
}

/// Why an attempt did not succeed, as far as the policy cares.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Failure {
    /// Worth another try; the runner may have said when.
    Retryable {
        /// The runner's `Retry-After`.
        retry_after: Option<Duration>,
    },
    /// It would fail again.
    Permanent,
    /// Whether it had its effect is unknown.
    Unknown {
        /// Why.
        cause: Doubt,
    },
}

/// What follows a failed attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Another attempt, so long after this one ended.
    Retry(Duration),
    /// None: it has failed.
    GiveUp,
    /// None before a person has said what came of it: it has not ended.
    Park,
}

impl Failure {
    /// Worth another try, and nobody said when: also what a lost worker leaves behind.
    pub const RETRYABLE: Failure = Failure::Retryable { retry_after: None };

    /// The runner's `Retry-After` in milliseconds.
    pub fn retry_after_ms(&self) -> Option<i64> {
        match self {
            Failure::Retryable { retry_after } => retry_after.map(|wait| wait.as_millis() as i64),
            Failure::Permanent | Failure::Unknown { .. } => None,
        }
    }

    /// Why its effect is unknown, where it is.
    pub fn doubt(&self) -> Option<Doubt> {
        match self {
            Failure::Unknown { cause } => Some(*cause),
            Failure::Retryable { .. } | Failure::Permanent => None,
        }
    }
}

impl Next {
    /// The wait before another attempt; none where there is none.
    pub fn wait(self) -> Option<Duration> {
        match self {
            Next::Retry(wait) => Some(wait),
            Next::GiveUp | Next::Park => None,
        }
    }

    /// The same for a rehearsal: one whose real attempt was parked is told of it only when a person let it run again.
    pub fn rehearsed_wait(self) -> Option<Duration> {
        if self == Next::Park { Some(Duration::ZERO) } else { self.wait() }
    }
}

impl Policy {
    /// Decides what follows the failed `attempt` (counted from 1) of `id`, which was first due `age` ago.
    pub fn after(&self, id: Uuid, attempt: i32, failure: &Failure, age: Duration) -> Next {
        let retry_after = match failure {
            Failure::Permanent => return Next::GiveUp,
            // Also after the last attempt: that it failed is not known either.
            Failure::Unknown { .. } if self.on_unknown == OnUnknown::Park => return Next::Park,
            Failure::Unknown { .. } => None,
            Failure::Retryable { retry_after } => *retry_after,
        };
        if attempt >= self.max_attempts {
            return Next::GiveUp;
        }
        let delay = retry_after.unwrap_or_else(|| self.delay(id, attempt));
        match self.give_up_after_ms {
            Some(limit) if age + delay > Duration::from_millis(limit) => Next::GiveUp,
            _ => Next::Retry(delay),
        }
    }

    /// The wait after failed `attempt`. Its jitter is drawn from id and attempt, so that both sides wait alike
    /// while a thousand interactions that failed together do not.
    pub fn delay(&self, id: Uuid, attempt: i32) -> Duration {
        let ms = match &self.backoff {
            Backoff::Listed(Listed { delays_ms }) => {
                let at = (attempt.max(1) as usize - 1).min(delays_ms.len().saturating_sub(1));
                delays_ms.get(at).copied().unwrap_or(0)
            }
            Backoff::Exponential(e) => {
                let grown = e.initial_ms as f64 * e.factor.powi(attempt.max(1) - 1);
                let capped = grown.min(e.max_ms as f64);
                (capped * (1.0 + e.jitter * (2.0 * fraction(id, attempt) - 1.0))) as u64
            }
        };
        Duration::from_millis(ms)
    }

    /// How long one attempt may run.
    pub fn run_timeout(&self) -> Duration {
        Duration::from_millis(self.run_timeout_ms)
    }

    /// Every fault of the policy's values, each as (field, what is wrong with it).
    pub fn faults(&self) -> Vec<(&'static str, String)> {
        const DAY: u64 = 86_400_000;
        let mut faults = Vec::new();
        let mut check = |field, ok: bool, what: String| {
            if !ok {
                faults.push((field, what));
            }
        };
        check(
            "policy.max_attempts",
            (1..=1_000).contains(&self.max_attempts),
            format!("must be 1 to 1000, is {}", self.max_attempts),
        );
        let mut span = |field, value: Option<u64>, most: u64| {
            if let Some(ms) = value {
                check(field, (1..=most).contains(&ms), format!("must be 1 to {most} ms, is {ms}"));
            }
        };
        span("policy.run_timeout_ms", Some(self.run_timeout_ms), 7 * DAY);
        span("policy.start_timeout_ms", self.start_timeout_ms, 366 * DAY);
        span("policy.heartbeat_timeout_ms", self.heartbeat_timeout_ms, DAY);
        span("policy.give_up_after_ms", self.give_up_after_ms, 366 * DAY);
        match &self.backoff {
            Backoff::Listed(Listed { delays_ms }) => {
                check(
                    "policy.backoff.delays_ms",
                    (1..=1_000).contains(&delays_ms.len()),
                    format!("must list 1 to 1000 delays, lists {}", delays_ms.len()),
                );
                check(
                    "policy.backoff.delays_ms",
                    delays_ms.iter().all(|ms| *ms <= 366 * DAY),
                    "holds a delay of more than 366 days".to_owned(),
                );
            }
            Backoff::Exponential(e) => {
                check(
                    "policy.backoff.factor",
                    e.factor >= 1.0 && e.factor <= 100.0,
                    format!("must be 1 to 100, is {}", e.factor),
                );
                check(
                    "policy.backoff.jitter",
                    (0.0..=1.0).contains(&e.jitter),
                    format!("must be 0 to 1, is {}", e.jitter),
                );
                check(
                    "policy.backoff.max_ms",
                    e.max_ms >= e.initial_ms && e.max_ms <= 366 * DAY,
                    format!("must be initial_ms to 366 days, is {}", e.max_ms),
                );
            }
        }
        faults
    }
}

/// A number in [0, 1) that depends on id and attempt only.
fn fraction(id: Uuid, attempt: i32) -> f64 {
    let digest = Sha256::new().chain_update(id.as_bytes()).chain_update(attempt.to_be_bytes()).finalize();
    let head = u32::from_be_bytes([digest[0], digest[1], digest[2], digest[3]]);
    f64::from(head) / (f64::from(u32::MAX) + 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const RETRY: Failure = Failure::Retryable { retry_after: None };

    fn exponential(initial_ms: u64, factor: f64, max_ms: u64, jitter: f64) -> Policy {
        let backoff = Backoff::Exponential(Exponential { initial_ms, factor, max_ms, jitter });
        Policy { backoff, ..Policy::default() }
    }

    #[test]
    fn waits_double_up_to_the_cap() {
        let policy = exponential(100, 2.0, 500, 0.0);
        let waits: Vec<_> = (1..=4).map(|n| policy.delay(Uuid::nil(), n).as_millis()).collect();
        assert_eq!(waits, [100, 200, 400, 500]);
    }

    #[test]
    fn the_last_listed_delay_repeats() {
        let backoff = Backoff::Listed(Listed { delays_ms: vec![5, 7] });
        let policy = Policy { backoff, ..Policy::default() };
        let waits: Vec<_> = (1..=3).map(|n| policy.delay(Uuid::nil(), n).as_millis()).collect();
        assert_eq!(waits, [5, 7, 7]);
    }

    #[test]
    fn the_runners_retry_after_is_heeded() {
        let failure = Failure::Retryable { retry_after: Some(Duration::from_secs(9)) };
        let next = Policy::default().after(Uuid::nil(), 1, &failure, Duration::ZERO);
        assert_eq!(next, Next::Retry(Duration::from_secs(9)));
    }

    #[test]
    fn it_gives_up_after_the_last_attempt_a_permanent_failure_or_too_long_a_time() {
        let policy = Policy { give_up_after_ms: Some(10_000), ..exponential(1_000, 1.0, 1_000, 0.0) };
        let short = Duration::from_secs(1);
        assert_eq!(policy.after(Uuid::nil(), 5, &RETRY, short), Next::GiveUp);
        assert_eq!(policy.after(Uuid::nil(), 1, &Failure::Permanent, short), Next::GiveUp);
        assert_eq!(policy.after(Uuid::nil(), 1, &RETRY, Duration::from_millis(9_001)), Next::GiveUp);
        assert_eq!(policy.after(Uuid::nil(), 1, &RETRY, Duration::from_secs(9)), Next::Retry(short));
    }

    #[test]
    fn what_is_unknown_is_tried_again_or_parked_as_the_policy_says() {
        let unknown = Failure::Unknown { cause: Doubt::Connection };
        let (retries, parks) = (Policy::default(), Policy { on_unknown: OnUnknown::Park, ..Policy::default() });
        let after = |policy: &Policy, attempt| policy.after(Uuid::nil(), attempt, &unknown, Duration::ZERO);
        assert_eq!(after(&retries, 1), retries.after(Uuid::nil(), 1, &Failure::RETRYABLE, Duration::ZERO));
        assert_eq!(after(&retries, 5), Next::GiveUp);
        assert_eq!((after(&parks, 1), after(&parks, 5)), (Next::Park, Next::Park));
        let known = parks.after(Uuid::nil(), 1, &Failure::RETRYABLE, Duration::ZERO);
        assert!(matches!(known, Next::Retry(_)), "what is known to have failed is tried again");
    }

    #[test]
    fn policies_and_failures_of_an_older_version_are_read_and_written_as_before() {
        assert!(!serde_json::to_string(&Policy::default()).unwrap().contains("on_unknown"));
        let parks: Policy = serde_json::from_str(r#"{"on_unknown":"park"}"#).unwrap();
        assert_eq!(parks.on_unknown, OnUnknown::Park);
        let failures = [r#"{"retryable":{"retry_after":null}}"#, r#""permanent""#, r#"{"unknown":{"cause":"worker"}}"#];
        for text in failures {
            let failure: Failure = serde_json::from_str(text).unwrap();
            assert_eq!(serde_json::to_string(&failure).unwrap(), text);
        }
    }

    #[test]
    fn a_misspelt_field_of_a_policy_is_refused() {
        assert!(serde_json::from_str::<Policy>(r#"{"max_attempt":3}"#).is_err());
        assert!(serde_json::from_str::<Policy>(r#"{"backoff":{"inital_ms":3}}"#).is_err());
        let listed: Policy = serde_json::from_str(r#"{"backoff":{"delays_ms":[1]}}"#).unwrap();
        assert_eq!(listed.backoff, Backoff::Listed(Listed { delays_ms: vec![1] }));
    }

    proptest! {
        #[test]
        fn a_wait_never_leaves_its_jitter_band(
            initial in 1u64..10_000, factor in 1.0f64..10.0, jitter in 0.0f64..=1.0, attempt in 1i32..1_000, id: u128,
        ) {
            let policy = exponential(initial, factor, 1_000_000, jitter);
            let plain = exponential(initial, factor, 1_000_000, 0.0).delay(Uuid::from_u128(id), attempt).as_millis() as f64;
            let moved = policy.delay(Uuid::from_u128(id), attempt).as_millis() as f64;
            prop_assert!(moved >= plain * (1.0 - jitter) - 1.0 && moved <= plain * (1.0 + jitter) + 1.0);
        }
    }
}
