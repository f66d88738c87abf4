//! The plain types that every part of the bridge speaks: what an interaction is, which side owns it,
//! where its account stands. No I/O, no clock.

use std::fmt;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::policy::{Failure, Policy};

/// One unit of work as a caller asks for it, already checked (see [`crate::router::request`]).
#[derive(Debug, Clone)]
pub struct Interaction {
    /// The tenant; the unit of cutover.
    pub account: String,
    /// The type of work, which narrows a cutover further.
    pub kind: String,
    /// The caller's idempotency key, unique within the account.
    pub key: String,
    /// The caller gave no key; the one above is made up, and nobody else knows it yet.
    pub key_made: bool,
    /// What must run, passed on byte for byte.
    pub payload: Payload,
    /// Interactions of one account, kind and series run one at a time, in the order of their pins.
    pub series: Option<String>,
    /// A sub-queue with a concurrency limit of its own.
    pub group: Option<String>,
    /// Not before this instant; absent means now.
    pub run_at: Option<DateTime<Utc>>,
    /// -100 to 100; higher first.
    pub priority: i16,
    /// Retries and time-outs.
    pub policy: Policy,
    /// What must have ended before it starts. Only for accounts in `complete`: the Temporal copy could not wait so.
    pub after: Option<After>,
    /// Of an account's interactions with the same one, at most one runs at any time, in any order. Only for accounts in `complete`, too.
    pub exclusive: Option<String>,
}

/// What an interaction waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct After {
    /// Interactions of the same account, pinned before or tasks.
    pub ids: Vec<Uuid>,
    /// Whether all of them must have ended, or one is enough.
    pub when: When,
    /// What becomes of it where they don't succeed.
    pub on_failure: OnFailure,
}

/// How many of those that it waits for must have ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum When {
    /// Each of them.
    #[default]
    All,
    /// One.
    Any,
}

/// What becomes of an interaction that can't be run any more after a success of what it waits for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnFailure {
    /// It is cancelled.
    #[default]
    Skip,
    /// It runs all the same: how they ended does not count.
    Run,
}

impl Interaction {
    /// The id that every router derives alike from account and key.
    pub fn id(&self) -> Uuid {
        interaction_id(&self.account, &self.key)
    }

    /// The id of its series, where it has one.
    pub fn series_id(&self) -> Option<Uuid> {
        self.series.as_deref().map(|series| series_id(&self.account, &self.kind, series))
    }

    /// The id of what it excludes others by, where it does.
    pub fn exclusive_id(&self) -> Option<Uuid> {
        self.exclusive.as_deref().map(|exclusive| uuid_of(&["exclusive", &self.account, exclusive]))
    }
}

/// Work of a group whose name begins so is run by remote workers alone. `crossover.is_remote` in the migrations says the same.
pub const REMOTE: &str = "remote.";

/// Whether remote workers alone run the work of this group.
pub fn is_remote(group: Option<&str>) -> bool {
    group.is_some_and(|group| group.starts_with(REMOTE))
}

/// Names the interaction of (account, key): a version 8 UUID (RFC 9562) made of the first 16 bytes of
/// SHA-256 over account, a NUL and key. Neither may contain NUL, so no two pairs share an input.
///
/// `crossover.interaction_id` in the migrations computes the same, and a check on the pins holds both together.
pub fn interaction_id(account: &str, key: &str) -> Uuid {
    uuid_of(&[account, key])
}

/// Names the series of (account, kind, series), in the manner of [`interaction_id`].
pub fn series_id(account: &str, kind: &str, series: &str) -> Uuid {
    uuid_of(&[account, kind, series])
}

fn uuid_of(parts: &[&str]) -> Uuid {
    let digest = Sha256::digest(parts.join("\0"));
    let mut first = [0u8; 16];
    first.copy_from_slice(&digest[..16]);
    uuid::Builder::from_custom_bytes(first).into_uuid()
}

/// A JSON document, kept as the caller wrote it: numbers keep their digits, keys their order.
#[derive(Debug, Clone)]
pub struct Payload(Arc<RawValue>);

impl Payload {
    /// Takes the text of a JSON document; an error says where it is broken, or that it is nested more deeply than
    /// every reader of JSON takes (128 levels, as serde_json's own readers do).
    pub fn parse(text: String) -> Result<Self, serde_json::Error> {
        if depth(&text) > MAX_DEPTH {
            let error = format!("it is nested more than {MAX_DEPTH} levels deep");
            return Err(serde::de::Error::custom(error));
        }
        RawValue::from_string(text).map(|raw| Self(raw.into()))
    }

    /// The document's text.
    pub fn get(&self) -> &str {
        self.0.get()
    }

    /// SHA-256 of the text. The same document with other white space is another payload.
    pub fn hash(&self) -> [u8; 32] {
        Sha256::digest(self.get()).into()
    }
}

const MAX_DEPTH: usize = 128;

/// How deeply arrays and objects are nested.
fn depth(json: &str) -> usize {
    let (mut now, mut most, mut in_text, mut escaped) = (0usize, 0, false, false);
    for byte in json.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_text => escaped = true,
            b'"' => in_text = !in_text,
            b'[' | b'{' if !in_text => {
                now += 1;
                most = most.max(now);
            }
            b']' | b'}' if !in_text => now = now.saturating_sub(1),
            _ => {}
        }
    }
    most
}

impl Serialize for Payload {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Payload {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Box::<RawValue>::deserialize(deserializer).map(|raw| Self(raw.into()))
    }
}

/// Lower-case hexadecimal, for hashes that people compare.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Reads what [`hex`] wrote; none where that is something else.
pub fn unhex(text: &str) -> Option<Vec<u8>> {
    let pairs = text.as_bytes().chunks(2).map(|pair| std::str::from_utf8(pair).ok());
    pairs.map(|pair| u8::from_str_radix(pair.filter(|p| p.len() == 2)?, 16).ok()).collect()
}

/// Declares an enum whose variants have one lower-case name each, in JSON, in SQL and on a screen.
macro_rules! names {
    ($(#[$meta:meta])* $name:ident { $($(#[$doc:meta])* $variant:ident = $text:literal),+ $(,)? }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
        pub enum $name { $($(#[$doc])* #[serde(rename = $text)] $variant),+ }

        impl $name {
            /// Every value, in order.
            pub const ALL: &'static [$name] = &[$($name::$variant),+];

            /// The name in JSON, in SQL and on a screen.
            pub const fn as_str(self) -> &'static str {
                match self { $($name::$variant => $text),+ }
            }
        }

        impl utoipa::PartialSchema for $name {
            fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
                let names = Self::ALL.iter().map(|value| value.as_str());
                utoipa::openapi::ObjectBuilder::new()
                    .schema_type(utoipa::openapi::schema::Type::String)
                    .enum_values(Some(names))
                    .into()
            }
        }

        impl utoipa::ToSchema for $name {}

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(self.as_str())
            }
        }

        impl std::str::FromStr for $name {
            type Err = $crate::interaction::UnknownName;

            fn from_str(text: &str) -> Result<Self, $crate::interaction::UnknownName> {
                Self::ALL.iter().copied().find(|v| v.as_str() == text).ok_or_else(|| $crate::interaction::UnknownName {
                    what: stringify!($name),
                    found: text.to_owned(),
                    known: Self::ALL.iter().map(|v| v.as_str()).collect::<Vec<_>>().join(", "),
                })
            }
        }
    };
}
pub(crate) use names;

/// A name that none of an enum's values has.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{found}` is no {what}; one of {known} is")]
pub struct UnknownName {
    pub(crate) what: &'static str,
    pub(crate) found: String,
    pub(crate) known: String,
}

names! {
    /// One of the two systems that can run an interaction.
    Side {
        /// The legacy side.
        Temporal = "temporal",
        /// The queue that stays.
        Postgres = "postgres",
    }
}

impl Side {
    /// The side that rehearses what this one executes.
    pub const fn other(self) -> Side {
        match self {
            Side::Temporal => Side::Postgres,
            Side::Postgres => Side::Temporal,
        }
    }
}

names! {
    /// Where an (account, kind) stands. The order is the order of a migration.
    Stage {
        /// Temporal only.
        Off = "off",
        /// Written to both, Temporal executes, Postgres rehearses.
        Shadow = "shadow",
        /// Written to both, Postgres executes, Temporal rehearses.
        Live = "live",
        /// Postgres only.
        Complete = "complete",
    }
}

impl Stage {
    /// The side that executes what is pinned in this stage.
    pub const fn owner(self) -> Side {
        match self {
            Stage::Off | Stage::Shadow => Side::Temporal,
            Stage::Live | Stage::Complete => Side::Postgres,
        }
    }

    /// Whether a copy goes to `side` in this stage.
    pub const fn writes_to(self, side: Side) -> bool {
        match side {
            Side::Temporal => !matches!(self, Stage::Complete),
            Side::Postgres => !matches!(self, Stage::Off),
        }
    }
}

names! {
    /// How an interaction, an attempt or a rehearsal ended.
    Outcome {
        /// The runner answered with a result.
        Succeeded = "succeeded",
        /// The runner refused for good, or the policy's attempts or time were used up.
        Failed = "failed",
        /// It was called off before it ended.
        Cancelled = "cancelled",
        /// It waited longer to start than its policy allows.
        Expired = "expired",
    }
}

/// Compared as two integers, epoch first: a result that carries an older fence than the pin's is late and refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Fence {
    /// Grows each time ownership moves.
    pub epoch: i32,
    /// Grows each time the owner starts to run it.
    pub attempt: i32,
}

impl fmt::Display for Fence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.epoch, self.attempt)
    }
}

impl std::str::FromStr for Fence {
    type Err = UnknownFence;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let number = |digits: &str| {
            let plain = !digits.is_empty() && digits.bytes().all(|digit| digit.is_ascii_digit());
            plain.then(|| digits.parse().ok()).flatten().filter(|n| *n > 0)
        };
        let numbers = text.split_once('.').and_then(|(epoch, attempt)| number(epoch).zip(number(attempt)));
        numbers.map(|(epoch, attempt)| Self { epoch, attempt }).ok_or(UnknownFence)
    }
}

/// A text is no fence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("must be a fence as the executor call had it in Crossover-Fence, like 1.2")]
pub struct UnknownFence;

/// What a copy of an interaction carries with it, so that it can run on its own authority.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Envelope {
    /// Derived from account and key.
    pub id: Uuid,
    /// The tenant.
    pub account: String,
    /// The type of work.
    pub kind: String,
    /// The idempotency key.
    pub key: String,
    /// The series' name, where there is one.
    pub series: Option<String>,
    /// The number in the series' chain; absent on an unpinned copy.
    pub series_no: Option<i64>,
    /// The sub-queue.
    pub group: Option<String>,
    /// Not before this instant.
    pub run_at: Option<DateTime<Utc>>,
    /// Retries and time-outs.
    pub policy: Policy,
    /// The side that executes; the other rehearses.
    pub owner: Side,
    /// The pin's epoch.
    pub epoch: i32,
    /// False for a copy that was started in `off` without a pin.
    pub pinned: bool,
    /// Somebody called it off: whoever gets it does not begin it, and ends it where it runs.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub cancelled: bool,
    /// Hex SHA-256 of the payload.
    pub payload_hash: String,
    /// Every earlier, unended member of the series that Postgres owns; an execution waits for their ends.
    pub behind: Vec<Uuid>,
    /// What must run.
    pub payload: Payload,
}

impl Envelope {
    /// The workflow id of an interaction without a series: the same from every router and for every repetition.
    pub fn workflow_id(&self) -> String {
        format!("{}:{}", self.id, self.epoch)
    }

    /// The copy that it is: a handover makes another of the same interaction.
    pub fn copy(&self) -> (Uuid, i32) {
        (self.id, self.epoch)
    }

    /// Whether `side` executes this copy rather than rehearses it.
    pub fn executes_on(&self, side: Side) -> bool {
        self.owner == side
    }
}

/// One attempt of one side at one interaction, as it is recorded when it has ended.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Attempt {
    /// The interaction.
    pub id: Uuid,
    /// Who made it.
    pub side: Side,
    /// Fence of the attempt.
    pub fence: Fence,
    /// True where nothing was run.
    pub rehearsal: bool,
    /// When it was to start (database or Temporal time).
    pub due_at: DateTime<Utc>,
    /// When the side took it from its queue.
    pub started_at: DateTime<Utc>,
    /// When its end was known.
    pub ended_at: DateTime<Utc>,
    /// What came of it. Absent where a rehearsal was bounded or dropped.
    pub outcome: Option<Outcome>,
    /// Why it failed, where it did.
    pub failure: Option<Failure>,
    /// When another attempt follows: after so many milliseconds.
    pub retry_ms: Option<i64>,
    /// The runner's answer, for a success.
    pub result: Option<Payload>,
    /// What went wrong, for anything else.
    pub error: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fence_is_read_as_it_is_written_and_nothing_else_is_one() {
        let fence = Fence { epoch: 2, attempt: 13 };
        assert_eq!(fence.to_string().parse(), Ok(fence));
        for text in ["", "1", "1.", ".1", "1.0", "0.1", "+1.1", "1.-1", "1.1.1", "1. 1", "1.99999999999"] {
            assert_eq!(text.parse::<Fence>(), Err(UnknownFence), "{text}");
        }
    }

    #[test]
    fn an_id_is_the_same_everywhere_and_differs_by_account_and_key() {
        assert_eq!(interaction_id("a", "k").to_string(), "9a2a77af-b0d5-8c76-864e-852f250f1799");
        assert_ne!(interaction_id("a", "bk"), interaction_id("ab", "k"));
        assert_eq!(interaction_id("a", "k").get_version_num(), 8);
    }

    #[test]
    fn a_payload_keeps_every_digit_and_the_order_of_its_keys() {
        let text = r#"{"b":123456789012345678901234567890.10,"a":"\u0000"}"#;
        let payload = Payload::parse(text.to_owned()).unwrap();
        assert_eq!(serde_json::to_string(&payload).unwrap(), text);
        let back: Payload = serde_json::from_str(text).unwrap();
        assert_eq!(back.hash(), payload.hash());
    }

    #[test]
    fn a_payload_nested_too_deeply_is_refused() {
        let nested = |levels: usize| format!("{}{}", "[".repeat(levels), "]".repeat(levels));
        assert!(Payload::parse(nested(128)).is_ok());
        assert!(Payload::parse(nested(129)).unwrap_err().to_string().contains("more than 128 levels"));
        assert!(Payload::parse(format!(r#"["{}\"["]"#, "[".repeat(200))).is_ok(), "brackets in a text don't count");
    }

    #[test]
    fn exactly_one_side_executes_in_every_stage_and_it_is_written_to() {
        for stage in Stage::ALL {
            assert!(stage.writes_to(stage.owner()), "{stage}");
        }
    }

    #[test]
    fn a_fence_compares_as_two_integers() {
        let fence = |epoch, attempt| Fence { epoch, attempt };
        assert!(fence(2, 1) > fence(1, 10));
        assert!(fence(1, 10) > fence(1, 9));
    }

    #[test]
    fn an_unknown_name_says_which_ones_there_are() {
        let error = "lives".parse::<Stage>().unwrap_err();
        assert_eq!(error.to_string(), "`lives` is no Stage; one of off, shadow, live, complete is");
    }
}
