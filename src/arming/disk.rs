//! The registration of this process and its copy of the accounts' states, in `state_dir`.
//!
//! One process a directory, by a lock that ends with it. The id outlives the process, so that a restart takes up the same
//! registration; the copy is good only under it. Never copy such a directory to another machine that is in use.
//!
//! The copy holds for a while after Postgres last heard of the process: a registration may be forgotten after that, and a
//! process that nobody waits for must not start anything by what it knew once. The time of the beat is a file of its own,
//! written after the states that the beat brought: it is small, so it can be written often, and one that is behind only makes
//! the copy older than it is.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use chrono::{DateTime, Utc};
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::armed::Held;
use crate::flags::store::replace;

/// The id of this process in the registry, and where it keeps what belongs to it. Locks the directory while it lives.
#[derive(Debug)]
pub struct Registration {
    id: Uuid,
    path: PathBuf,
    beat: PathBuf,
    valid: Duration,
    of: String,
    _lock: File,
}

/// What an earlier process left.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Left {
    /// Nothing, or nothing that holds: why.
    Nothing(String),
    /// It ended without deregistering, and so long ago was it last heard of that it may have been forgotten: why.
    TooOld(String),
    /// It ended without deregistering: its registration stands, and so does what it held.
    Standing(HashMap<String, Held>),
}

/// Why the directory can't be used.
#[derive(Debug, thiserror::Error)]
pub enum RegistrationError {
    /// Somebody else does.
    #[error("state_dir {0} is in use by another crossover process; give each process a directory of its own")]
    Taken(PathBuf),
    /// The system.
    #[error(
        "state_dir {0} can't be used: {1}; each process needs a directory that outlives it, or set state_dir to another one"
    )]
    Io(PathBuf, #[source] io::Error),
    /// It is not ours.
    #[error(
        "{0} can't be read as a registration: {1}; if it is damaged, delete it: the process registers anew, and the old entry \
         must be forgotten with `crossover routers --forget`"
    )]
    Damaged(PathBuf, String),
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File1 {
    /// This format.
    version: u32,
    router: Uuid,
    /// Of which database and flags.
    of: String,
    /// It said goodbye: nobody waits for it, so what it held may be long past.
    left: bool,
    /// Absent: none was ever read.
    accounts: Option<HashMap<String, Held>>,
}

impl Registration {
    /// Takes up the registration of `dir`, or begins one. `of` names the database and the flags, without secrets: a copy of
    /// other ones is not gone by, nor is one whose last beat is `valid` ago.
    pub(super) fn open(dir: &Path, of: &str, valid: Duration) -> Result<(Self, Left), RegistrationError> {
        let failed = |error| RegistrationError::Io(dir.to_owned(), error);
        fs::create_dir_all(dir).map_err(failed)?;
        let lock = File::create(dir.join("registration.lock")).map_err(failed)?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive).map_err(|error| match error {
            rustix::io::Errno::WOULDBLOCK => RegistrationError::Taken(dir.to_owned()),
            other => failed(other.into()),
        })?;
        let path = dir.join("registration.json");
        let found = match fs::read_to_string(&path) {
            Ok(text) => {
                let damaged = |error: serde_json::Error| RegistrationError::Damaged(path.clone(), error.to_string());
                Some(serde_json::from_str::<File1>(&text).map_err(damaged)?)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(failed(error)),
        };
        let id = found.as_ref().map_or_else(Uuid::new_v4, |found| found.router);
        let beat = dir.join("registration.beat");
        let registration = Self { id, path, beat, valid, of: of.to_owned(), _lock: lock };
        let left = match found {
            None => {
                // Before anybody hears of the id, so that it is never lost.
                registration.write(None, true).map_err(failed)?;
                Left::Nothing("this is its first start in this state_dir".to_owned())
            }
            Some(File1 { left: true, .. }) => {
                Left::Nothing("its last process here deregistered, so nobody waited for it since".to_owned())
            }
            Some(File1 { accounts: None, .. }) => Left::Nothing("its last process here never read them".to_owned()),
            Some(File1 { of: other, .. }) if other != of => {
                Left::Nothing(format!("what is on disk is of {other} and not of {of}"))
            }
            Some(File1 { accounts: Some(accounts), .. }) => {
                // Whoever forgets goes by what the process said that beat, whatever is configured now.
                let (beat, said) = registration.noted().unzip();
                match too_old(beat, Utc::now(), said.map_or(valid, |said| valid.min(said))) {
                    Some(why) => Left::TooOld(why),
                    None => Left::Standing(accounts),
                }
            }
        };
        Ok((registration, left))
    }

    /// Its id in the registry.
    pub fn id(&self) -> Uuid {
        self.id
    }

    /// Keeps the copy, in one step that is on disk when this returns.
    pub(super) fn keep(&self, accounts: HashMap<String, Held>) -> io::Result<()> {
        self.write(Some(accounts), false)
    }

    /// Notes when Postgres last heard of it, after what that brought was kept.
    pub(super) fn heard(&self, at: DateTime<Utc>) -> io::Result<()> {
        replace(&self.beat, &format!("{} {}", at.to_rfc3339(), self.valid.as_secs()))
    }

    /// When that was last noted.
    pub(super) fn last_beat(&self) -> Option<DateTime<Utc>> {
        self.noted().map(|noted| noted.0)
    }

    /// The same, and for how long the process held its copy for good then.
    fn noted(&self) -> Option<(DateTime<Utc>, Duration)> {
        let text = fs::read_to_string(&self.beat).ok()?;
        let (at, valid) = text.trim().split_once(' ')?;
        Some((DateTime::parse_from_rfc3339(at).ok()?.to_utc(), Duration::from_secs(valid.parse().ok()?)))
    }

    /// Notes that it leaves, before it does.
    pub(super) fn leave(&self) -> io::Result<()> {
        self.write(None, true)
    }

    fn write(&self, accounts: Option<HashMap<String, Held>>, left: bool) -> io::Result<()> {
        let file = File1 { version: 1, router: self.id, of: self.of.clone(), left, accounts };
        replace(&self.path, &serde_json::to_string(&file)?)
    }
}

/// A clock that was set back by more than this is not believed. Whoever forgets a registration waits as much longer.
const CLOCKS: Duration = Duration::from_secs(5);

/// Why a copy whose process was last heard of at `beat` does not hold; none where it does.
fn too_old(beat: Option<DateTime<Utc>>, now: DateTime<Utc>, valid: Duration) -> Option<String> {
    let Some(beat) = beat else {
        return Some("what is on disk does not say when Postgres last heard of this process".to_owned());
    };
    let Ok(age) = (now + CLOCKS - beat).to_std() else {
        return Some(format!(
            "by the clock of this machine Postgres last heard of this process in the future, at {beat}"
        ));
    };
    let age = age.saturating_sub(CLOCKS);
    (age >= valid).then(|| {
        let whole = Duration::from_secs(age.as_secs());
        format!(
            "Postgres last heard of this process {} ago, so it may have been forgotten, and what is on disk holds for {} \
             (router.disk_valid)",
            humantime::format_duration(whole),
            humantime::format_duration(valid)
        )
    })
}

#[cfg(test)]
mod tests {
    use super::super::armed::State;
    use super::*;

    const HOUR: Duration = Duration::from_secs(3_600);

    fn accounts() -> HashMap<String, Held> {
        HashMap::from([("a".to_owned(), Held { state: State::Closing, generation: 3 })])
    }

    #[test]
    fn a_restart_takes_up_the_registration_and_what_it_held() {
        let dir = tempfile::tempdir().unwrap();
        let (first, left) = Registration::open(dir.path(), "db", HOUR).unwrap();
        assert!(matches!(left, Left::Nothing(_)));
        first.keep(accounts()).unwrap();
        first.heard(Utc::now()).unwrap();
        let id = first.id();
        assert!(matches!(Registration::open(dir.path(), "db", HOUR), Err(RegistrationError::Taken(_))));
        drop(first);
        let (second, left) = Registration::open(dir.path(), "db", HOUR).unwrap();
        assert_eq!((second.id(), left), (id, Left::Standing(accounts())));
    }

    #[test]
    fn a_copy_is_not_gone_by_once_its_process_may_have_been_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let (first, _) = Registration::open(dir.path(), "db", HOUR).unwrap();
        first.keep(accounts()).unwrap();
        let left = |registration: Registration, valid| {
            drop(registration);
            Registration::open(dir.path(), "db", valid).unwrap()
        };
        let (second, unknown) = left(first, HOUR);
        assert!(matches!(unknown, Left::TooOld(why) if why.contains("does not say when")), "a version before wrote it");
        second.heard(Utc::now() - Duration::from_secs(600)).unwrap();
        let (third, held) = left(second, HOUR);
        assert_eq!(held, Left::Standing(accounts()));
        let (short, old) = left(third, Duration::from_secs(599));
        assert!(matches!(old, Left::TooOld(why) if why.contains("10m ago") && why.contains("9m 59s")));
        short.heard(Utc::now() - Duration::from_secs(700)).unwrap();
        let (_last, long) = left(short, HOUR);
        assert!(matches!(long, Left::TooOld(_)), "a longer time that is set now says nothing of what was said then");
    }

    #[test]
    fn a_clock_that_was_set_back_far_makes_a_copy_void_and_one_that_is_a_little_off_does_not() {
        let now = Utc::now();
        let ahead = |seconds| too_old(Some(now + Duration::from_secs(seconds)), now, HOUR);
        assert!(ahead(4).is_none());
        assert!(ahead(6).unwrap().contains("in the future"));
    }

    #[test]
    fn what_deregistered_or_belongs_to_another_database_is_not_gone_by() {
        let dir = tempfile::tempdir().unwrap();
        let (first, _) = Registration::open(dir.path(), "db", HOUR).unwrap();
        first.keep(accounts()).unwrap();
        let id = first.id();
        drop(first);
        let (other, left) = Registration::open(dir.path(), "another", HOUR).unwrap();
        assert!(other.id() == id && matches!(left, Left::Nothing(why) if why.contains("another")));
        other.keep(accounts()).unwrap();
        other.leave().unwrap();
        drop(other);
        let (last, left) = Registration::open(dir.path(), "another", HOUR).unwrap();
        assert!(last.id() == id && matches!(left, Left::Nothing(why) if why.contains("deregistered")));
    }

    #[test]
    fn a_damaged_registration_is_refused_and_says_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("registration.json"), "{").unwrap();
        let refused = Registration::open(dir.path(), "db", HOUR).unwrap_err().to_string();
        assert!(refused.contains("--forget"), "{refused}");
    }
}
