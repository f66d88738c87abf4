//! What a schedule is, as a caller writes it: read from a body, checked whole, every fault at once. No I/O.

use chrono::{DateTime, SubsecRound, TimeDelta, Utc};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use uuid::Uuid;

use super::plan::{CatchUp, Overlap};
use super::times::{ByClock, Every, Once, Spec, Times};
use super::{key_of, key_of_trigger, series_of};
use crate::interaction::{Interaction, Payload};
use crate::policy::Policy;
use crate::router::request::{self, Fault, Reader, RequestError, name_fault, plain};

/// A schedule, without what has become of it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Definition {
    /// The tenant.
    pub account: String,
    /// Unique within the account.
    pub name: String,
    /// The type of work.
    pub kind: String,
    /// What each run gets.
    pub payload: Payload,
    /// What the runs must not overlap with; absent: a series of their own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub series: Option<String>,
    /// The sub-queue of the runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// Their priority.
    pub priority: i16,
    /// Their retries and time-outs.
    pub policy: Policy,
    /// When.
    pub spec: Spec,
    /// If a run is under way.
    pub overlap: Overlap,
    /// If nobody was there.
    pub catch_up: CatchUp,
    /// How late a time may be found and still run.
    pub catch_up_window_ms: i64,
    /// By how much runs are delayed at most.
    pub jitter_ms: i64,
}

/// What a change of a schedule leaves as it is, is absent.
#[derive(Debug, Clone, Default)]
pub struct Change {
    payload: Option<Payload>,
    group: Option<Option<String>>,
    priority: Option<i16>,
    policy: Option<Policy>,
    spec: Option<NewSpec>,
    overlap: Option<Overlap>,
    catch_up: Option<CatchUp>,
    catch_up_window_ms: Option<i64>,
    jitter_ms: Option<i64>,
    /// The version that the caller has seen.
    pub version: Option<i64>,
}

/// A spec as it comes: an interval may leave open when it starts.
#[derive(Debug, Clone)]
pub enum NewSpec {
    /// Every so often.
    Every {
        /// Milliseconds.
        every_ms: i64,
        /// Absent: as before, or from now on.
        starts_at: Option<DateTime<Utc>>,
    },
    /// Anything that is complete.
    Whole(Spec),
}

const FIELDS: [&str; 13] = [
    "account",
    "name",
    "kind",
    "payload",
    "series",
    "group",
    "priority",
    "policy",
    "spec",
    "overlap",
    "catch_up",
    "catch_up_window_ms",
    "jitter_ms",
];
/// Not `series`: runs of two series could overlap.
const CHANGES: [&str; 10] = [
    "payload",
    "group",
    "priority",
    "policy",
    "spec",
    "overlap",
    "catch_up",
    "catch_up_window_ms",
    "jitter_ms",
    "version",
];

/// The shortest catch-up window: a scheduler that is a little late has missed nothing.
const SHORTEST_WINDOW: TimeDelta = TimeDelta::seconds(10);
const LONGEST_WINDOW: TimeDelta = TimeDelta::days(366);
const DEFAULT_WINDOW: TimeDelta = TimeDelta::days(1);

impl Definition {
    /// Reads the body of `POST /v1/schedules`. `now` is the database's.
    pub fn parse(body: &[u8], max_payload: usize, now: DateTime<Utc>) -> Result<Self, RequestError> {
        let mut reader = reader(body)?;
        reader.known(&FIELDS);
        let payload = payload_of(&mut reader);
        if payload.is_none() && !reader.faults.iter().any(|fault| fault.field == "payload") {
            reader.fault("payload", "is missing; any JSON value is one, null too".to_owned());
        }
        let spec = spec_of(&mut reader);
        if spec.is_none() && !reader.faults.iter().any(|fault| fault.field.starts_with("spec")) {
            reader.fault("spec", format!("is missing; {SPECS}"));
        }
        let whole = spec.is_some();
        let definition = Self {
            account: reader.required("account"),
            name: reader.required("name"),
            kind: reader.required("kind"),
            payload: payload.unwrap_or_else(nothing),
            series: reader.take("series"),
            group: reader.take("group"),
            priority: reader.take("priority").unwrap_or(0),
            policy: policy_of(&mut reader).unwrap_or_default(),
            spec: spec.map_or(Spec::Once(Once { at: now + TimeDelta::days(1) }), |spec| spec.complete(None, now)),
            overlap: reader.take("overlap").unwrap_or(Overlap::Skip),
            catch_up: reader.take("catch_up").unwrap_or(CatchUp::Latest),
            catch_up_window_ms: reader.take("catch_up_window_ms").unwrap_or(DEFAULT_WINDOW.num_milliseconds()),
            jitter_ms: reader.take("jitter_ms").unwrap_or(0),
        };
        definition.checked(reader.faults, whole, max_payload, now)
    }

    /// It with `change`. What has passed is no fault of a spec that stays.
    pub fn with(&self, change: Change, max_payload: usize, now: DateTime<Utc>) -> Result<Self, RequestError> {
        let looked_at = change.spec.is_some() || change.jitter_ms.is_some_and(|jitter| jitter != self.jitter_ms);
        let definition = Self {
            account: self.account.clone(),
            name: self.name.clone(),
            kind: self.kind.clone(),
            payload: change.payload.unwrap_or_else(|| self.payload.clone()),
            series: self.series.clone(),
            group: change.group.unwrap_or_else(|| self.group.clone()),
            priority: change.priority.unwrap_or(self.priority),
            policy: change.policy.unwrap_or_else(|| self.policy.clone()),
            spec: change.spec.map_or_else(|| self.spec.clone(), |spec| spec.complete(Some(&self.spec), now)),
            overlap: change.overlap.unwrap_or(self.overlap),
            catch_up: change.catch_up.unwrap_or(self.catch_up),
            catch_up_window_ms: change.catch_up_window_ms.unwrap_or(self.catch_up_window_ms),
            jitter_ms: change.jitter_ms.unwrap_or(self.jitter_ms),
        };
        definition.checked(Vec::new(), looked_at, max_payload, now)
    }

    /// When it fires.
    pub fn times(&self) -> Result<Times, Vec<Fault>> {
        self.spec.read()
    }

    /// The run of schedule `id` for a nominal time.
    pub fn run(&self, id: Uuid, nominal: DateTime<Utc>) -> Interaction {
        self.interaction(id, key_of(id, nominal))
    }

    /// The run that was triggered under `token`.
    pub fn triggered(&self, id: Uuid, token: &str) -> Interaction {
        self.interaction(id, key_of_trigger(id, token))
    }

    /// A run is due when it is enqueued, not at its nominal time: what was caught up has not waited yet.
    fn interaction(&self, id: Uuid, key: String) -> Interaction {
        Interaction {
            account: self.account.clone(),
            kind: self.kind.clone(),
            key,
            key_made: false,
            after: None,
            exclusive: None,
            payload: self.payload.clone(),
            series: Some(self.series.clone().unwrap_or_else(|| series_of(id))),
            group: self.group.clone(),
            run_at: None,
            priority: self.priority,
            policy: self.policy.clone(),
        }
    }

    fn checked(
        self,
        faults: Vec<Fault>,
        looked_at: bool,
        max_payload: usize,
        now: DateTime<Utc>,
    ) -> Result<Self, RequestError> {
        let bytes = self.payload.get().len();
        if bytes > max_payload {
            return Err(RequestError::TooLarge { bytes, limit: max_payload });
        }
        let mut faults = faults;
        for fault in self.faults(looked_at, now) {
            if !faults.iter().any(|known| known.field == fault.field) {
                faults.push(fault);
            }
        }
        if faults.is_empty() { Ok(self) } else { Err(RequestError::Invalid(faults)) }
    }

    fn faults(&self, looked_at: bool, now: DateTime<Utc>) -> Vec<Fault> {
        let run = self.run(Uuid::nil(), now);
        let mut faults: Vec<Fault> =
            request::check(&run, now).into_iter().filter(|fault| fault.field != "key").collect();
        let mut push = |field: &str, message| faults.push(Fault { field: field.to_owned(), message });
        if let Some(message) = name_fault(&self.name, 200) {
            push("name", message);
        }
        let (least, most) = (SHORTEST_WINDOW.num_milliseconds(), LONGEST_WINDOW.num_milliseconds());
        if !(least..=most).contains(&self.catch_up_window_ms) {
            push("catch_up_window_ms", format!("must be {least} to {most}, is {}", self.catch_up_window_ms));
        }
        match TimeDelta::try_milliseconds(self.jitter_ms) {
            None => push("jitter_ms", format!("is {}, which is no time", self.jitter_ms)),
            Some(jitter) if looked_at => faults.extend(self.spec.faults(jitter, now)),
            Some(_) => {}
        }
        faults
    }
}

impl Change {
    /// Reads the body of `PATCH /v1/schedules/{id}`. What is there replaces what was; `group` may be `null`.
    pub fn parse(body: &[u8]) -> Result<Self, RequestError> {
        let mut reader = reader(body)?;
        reader.known(&CHANGES);
        let change = Self {
            payload: payload_of(&mut reader),
            spec: spec_of(&mut reader),
            policy: policy_of(&mut reader),
            group: nullable(&mut reader, "group"),
            priority: reader.take("priority"),
            overlap: reader.take("overlap"),
            catch_up: reader.take("catch_up"),
            catch_up_window_ms: reader.take("catch_up_window_ms"),
            jitter_ms: reader.take("jitter_ms"),
            version: reader.take("version"),
        };
        if reader.faults.is_empty() { Ok(change) } else { Err(RequestError::Invalid(reader.faults)) }
    }
}

impl NewSpec {
    /// Reads the `spec` of a body.
    pub fn parse(text: &str) -> Result<Self, Vec<Fault>> {
        let fields = serde_json::from_str(text)
            .map_err(|_| vec![Fault { field: "spec".to_owned(), message: format!("is no object; {SPECS}") }])?;
        let mut reader = Reader { prefix: "spec.", fields, faults: Vec::new() };
        reader.known(&["every_ms", "starts_at", "cron", "time_zone", "at"]);
        let (every, starts_at) = (reader.take::<i64>("every_ms"), reader.take::<DateTime<Utc>>("starts_at"));
        let (cron, zone) = (reader.take::<String>("cron"), reader.take::<String>("time_zone"));
        let at = reader.take::<DateTime<Utc>>("at");
        let mut faults = reader.faults;
        let spec = match (every, cron, at) {
            (Some(every_ms), None, None) if zone.is_none() => Some(Self::Every { every_ms, starts_at }),
            (None, Some(cron), None) if starts_at.is_none() => {
                let time_zone = zone.unwrap_or_else(|| "UTC".to_owned());
                Some(Self::Whole(Spec::Cron(ByClock { cron, time_zone })))
            }
            (None, None, Some(at)) if starts_at.is_none() && zone.is_none() => {
                Some(Self::Whole(Spec::Once(Once { at })))
            }
            _ => None,
        };
        match spec {
            Some(spec) if faults.is_empty() => Ok(spec),
            None if faults.is_empty() => {
                faults.push(Fault { field: "spec".to_owned(), message: format!("must be one of three; {SPECS}") });
                Err(faults)
            }
            _ => Err(faults),
        }
    }

    /// With what it leaves open: a changed interval keeps its phase, a new one starts now.
    pub fn complete(self, before: Option<&Spec>, now: DateTime<Utc>) -> Spec {
        match (self, before) {
            (Self::Whole(spec), _) => spec,
            (Self::Every { every_ms, starts_at: Some(starts_at) }, _) => Spec::Every(Every { every_ms, starts_at }),
            (Self::Every { every_ms, .. }, Some(Spec::Every(Every { starts_at, .. }))) => {
                Spec::Every(Every { every_ms, starts_at: *starts_at })
            }
            (Self::Every { every_ms, .. }, _) => Spec::Every(Every { every_ms, starts_at: now.trunc_subsecs(3) }),
        }
    }
}

/// What a spec may be.
const SPECS: &str = "write {\"every_ms\": 60000}, {\"cron\": \"0 9 * * 1-5\", \"time_zone\": \"Europe/Berlin\"} or {\"at\": \"2027-01-01T00:00:00Z\"}";

fn reader(body: &[u8]) -> Result<Reader, RequestError> {
    let text = std::str::from_utf8(body)
        .map_err(|e| RequestError::Syntax(format!("invalid UTF-8 after byte {}", e.valid_up_to())))?;
    let fields = serde_json::from_str(text).map_err(|e| RequestError::Syntax(e.to_string()))?;
    Ok(Reader { prefix: "", fields, faults: Vec::new() })
}

fn payload_of(reader: &mut Reader) -> Option<Payload> {
    match Payload::parse(reader.raw("payload")?.get().to_owned()) {
        Ok(payload) => Some(payload),
        Err(error) => {
            reader.fault("payload", plain(&error));
            None
        }
    }
}

fn spec_of(reader: &mut Reader) -> Option<NewSpec> {
    let raw = reader.raw("spec")?;
    NewSpec::parse(raw.get()).map_err(|faults| reader.faults.extend(faults)).ok()
}

fn policy_of(reader: &mut Reader) -> Option<Policy> {
    let raw = reader.raw("policy")?;
    Some(request::policy(&raw, &mut reader.faults))
}

/// Absent: as it was; `null`: none.
fn nullable(reader: &mut Reader, name: &str) -> Option<Option<String>> {
    let raw: Box<RawValue> = reader.raw(name)?;
    match serde_json::from_str(raw.get()) {
        Ok(value) => Some(value),
        Err(error) => {
            reader.fault(name, plain(&error));
            None
        }
    }
}

fn nothing() -> Payload {
    serde_json::from_str("null").unwrap_or_else(|_| unreachable!("null is JSON"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> DateTime<Utc> {
        DateTime::from_timestamp(1_900_000_000, 0).unwrap()
    }

    fn faults(body: &str) -> Vec<String> {
        match Definition::parse(body.as_bytes(), 1_000, now()) {
            Err(RequestError::Invalid(faults)) => faults.into_iter().map(|fault| fault.field).collect(),
            other => panic!("no list of faults: {other:?}"),
        }
    }

    fn definition(spec: &str) -> Definition {
        let body = format!(r#"{{"account":"a","name":"n","kind":"k","payload":1,"spec":{spec}}}"#);
        Definition::parse(body.as_bytes(), 1_000, now()).unwrap()
    }

    #[test]
    fn every_fault_is_named_at_once() {
        let body = r#"{"account":"","name":"a\u0000","kind":7,"spec":{"cron":"0 0 30 2 *","time_zone":"Mars/Base"},
            "overlap":"never","catch_up_window_ms":1,"jitter_ms":-1,"priority":101,"polcy":{},"policy":{"max_attempts":0}}"#;
        let mut found = faults(body);
        found.sort();
        let wanted = [
            "account",
            "catch_up_window_ms",
            "kind",
            "name",
            "overlap",
            "payload",
            "polcy",
            "policy.max_attempts",
            "priority",
            "spec.time_zone",
        ];
        assert_eq!(found, wanted);
        assert_eq!(faults("{}"), ["payload", "spec", "account", "name", "kind"]);
    }

    #[test]
    fn a_spec_is_one_of_three() {
        for spec in
            ["1", "{}", r#"{"every_ms":1000,"cron":"* * * * *"}"#, r#"{"at":"2031-01-01T00:00:00Z","time_zone":"UTC"}"#]
        {
            let body = format!(r#"{{"account":"a","name":"n","kind":"k","payload":1,"spec":{spec}}}"#);
            assert_eq!(faults(&body), ["spec"], "{spec}");
        }
        let body = r#"{"account":"a","name":"n","kind":"k","payload":1,"spec":{"every_ms":"often"}}"#;
        assert_eq!(faults(body), ["spec.every_ms"]);
    }

    #[test]
    fn a_time_that_nobody_can_count_to_is_refused() {
        for (spec, field) in [
            (r#"{"at":"+10000-01-01T00:00:00Z"}"#, "spec.at"),
            (r#"{"at":"2200-01-01T00:00:00Z"}"#, "spec.at"),
            (r#"{"at":"1969-12-31T00:00:00Z"}"#, "spec.at"),
            (r#"{"every_ms":60000,"starts_at":"+262142-12-31T23:59:59Z"}"#, "spec.starts_at"),
            (r#"{"every_ms":60000,"starts_at":"-262143-01-01T00:00:00Z"}"#, "spec.starts_at"),
            (r#"{"every_ms":60000,"starts_at":"2200-01-01T00:00:00Z"}"#, "spec.starts_at"),
        ] {
            let body = format!(r#"{{"account":"a","name":"n","kind":"k","payload":1,"jitter_ms":9,"spec":{spec}}}"#);
            assert_eq!(faults(&body), [field], "{spec}");
        }
        definition(r#"{"at":"2126-01-01T00:00:00Z"}"#);
    }

    #[test]
    fn a_changed_interval_keeps_its_phase_unless_it_is_told_another() {
        let before = definition(r#"{"every_ms":60000,"starts_at":"2030-01-01T00:00:07Z"}"#);
        let change = |spec: &str| {
            let change = Change::parse(format!(r#"{{"spec":{spec}}}"#).as_bytes()).unwrap();
            let later = now() + TimeDelta::days(3);
            match before.with(change, 1_000, later).unwrap().spec {
                Spec::Every(every) => every.starts_at.to_rfc3339(),
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(change(r#"{"every_ms":10000}"#), "2030-01-01T00:00:07+00:00");
        assert_eq!(change(r#"{"every_ms":10000,"starts_at":"2030-01-02T00:00:00Z"}"#), "2030-01-02T00:00:00+00:00");
        let new = definition(r#"{"every_ms":60000}"#);
        assert!(matches!(new.spec, Spec::Every(Every { starts_at, .. }) if starts_at == now()));
    }

    #[test]
    fn a_change_leaves_what_it_does_not_name_and_may_take_a_group_away() {
        let body = br#"{"account":"a","name":"n","kind":"k","payload":{"a":1.50},"group":"g","spec":{"at":"2031-01-01T00:00:00Z"}}"#;
        let before = Definition::parse(body, 1_000, now()).unwrap();
        let after = before.with(Change::parse(br#"{"group":null,"priority":5}"#).unwrap(), 1_000, now()).unwrap();
        assert_eq!((after.group, after.priority, after.payload.get()), (None, 5, r#"{"a":1.50}"#));
        let passed = now() + TimeDelta::days(2_000);
        assert!(
            before.with(Change::parse(br#"{"priority":5}"#).unwrap(), 1_000, passed).is_ok(),
            "a spec that stays is not judged anew"
        );
        assert!(matches!(Change::parse(br#"{"account":"b"}"#), Err(RequestError::Invalid(_))));
    }

    #[test]
    fn a_run_is_named_by_schedule_and_nominal_time_alone() {
        let run = definition(r#"{"every_ms":60000}"#).run(Uuid::from_u128(5), now());
        assert_eq!(run.key, "schedule:00000000-0000-0000-0000-000000000005@2030-03-17T17:46:40.000Z");
        assert_eq!(run.series.as_deref(), Some("schedule:00000000-0000-0000-0000-000000000005"));
    }
}
