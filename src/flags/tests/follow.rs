use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use tempfile::TempDir;
use tokio::time::timeout;

use super::SHIPPED;
use crate::flags::{Decision, Document, DocumentBuilder, Flags, FlagsError, Health};
use crate::interaction::Stage;

/// So long that only a notification can be what woke the watcher.
const NEVER: Duration = Duration::from_secs(3600);
const SOON: Duration = Duration::from_millis(20);
const PATIENCE: Duration = Duration::from_secs(20);

struct Place {
    dir: TempDir,
}

impl Place {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    fn file(&self) -> PathBuf {
        self.dir.path().join("flags.json")
    }

    fn state_dir(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    fn open(&self, poll: Duration) -> Result<Flags, FlagsError> {
        Flags::open(&self.file(), &self.state_dir(), poll)
    }
}

fn acme_in(stage: Stage) -> Document {
    DocumentBuilder::default().account(stage, "acme").build().unwrap()
}

fn acme(stage: Stage) -> Decision {
    Decision { stage, revision: acme_in(stage).revision().to_owned() }
}

async fn in_force(flags: &Flags, document: &Document) {
    let mut changed = flags.changed();
    let seen = changed.wait_for(|revision| revision == document.revision());
    timeout(PATIENCE, seen).await.expect("the revision in time").unwrap();
}

async fn health(flags: &Flags, wanted: impl FnMut(&Health) -> bool) -> Health {
    let mut changed = flags.health_changed();
    timeout(PATIENCE, changed.wait_for(wanted)).await.expect("the health in time").unwrap().clone()
}

#[tokio::test]
async fn an_atomic_replace_is_seen() {
    let place = Place::new();
    acme_in(Stage::Shadow).write_to(&place.file()).unwrap();
    let flags = place.open(NEVER).unwrap();
    assert_eq!(flags.decide("acme", "sync"), acme(Stage::Shadow));
    for stage in [Stage::Live, Stage::Complete, Stage::Off] {
        acme_in(stage).write_to(&place.file()).unwrap();
        in_force(&flags, &acme_in(stage)).await;
        assert_eq!(flags.decide("acme", "sync"), acme(stage));
        assert_eq!(flags.stage("acme", "sync"), stage);
    }
}

#[tokio::test]
async fn an_edit_in_place_is_seen() {
    let place = Place::new();
    fs::write(place.file(), SHIPPED).unwrap();
    let flags = place.open(NEVER).unwrap();
    fs::write(place.file(), acme_in(Stage::Live).text()).unwrap();
    in_force(&flags, &acme_in(Stage::Live)).await;
}

#[tokio::test]
async fn a_broken_edit_keeps_the_last_good_one_in_force_until_it_is_mended() {
    let place = Place::new();
    acme_in(Stage::Live).write_to(&place.file()).unwrap();
    let flags = place.open(NEVER).unwrap();
    fs::write(place.file(), SHIPPED.replacen("strategies", "strategy", 1)).unwrap();

    let broken = health(&flags, |health| health.error.is_some()).await;
    assert!(broken.error.unwrap().contains("features[0].strategy: unknown field, did you mean strategies?"));
    assert!(broken.error_since.unwrap() >= broken.loaded_at);
    assert!(!broken.from_last_good);
    assert_eq!(flags.decide("acme", "sync"), acme(Stage::Live));

    acme_in(Stage::Shadow).write_to(&place.file()).unwrap();
    let good = health(&flags, |health| health.error.is_none()).await;
    assert_eq!((good.revision.as_str(), good.error_since), (acme_in(Stage::Shadow).revision(), None));
    assert_eq!(flags.decide("acme", "sync"), acme(Stage::Shadow));
}

#[tokio::test]
async fn a_deleted_file_keeps_the_last_good_one_in_force() {
    let place = Place::new();
    acme_in(Stage::Live).write_to(&place.file()).unwrap();
    let flags = place.open(NEVER).unwrap();
    fs::remove_file(place.file()).unwrap();
    let gone = health(&flags, |health| health.error.is_some()).await;
    assert!(gone.error.unwrap().contains("can't be read"));
    assert_eq!(flags.decide("acme", "sync"), acme(Stage::Live));
}

#[tokio::test]
async fn a_restart_with_a_broken_file_goes_on_with_the_last_good_one_under_its_revision() {
    let place = Place::new();
    fs::write(place.file(), SHIPPED).unwrap();
    let flags = place.open(NEVER).unwrap();
    acme_in(Stage::Live).write_to(&place.file()).unwrap();
    in_force(&flags, &acme_in(Stage::Live)).await;
    drop(flags);
    fs::write(place.file(), "{").unwrap();

    let flags = place.open(NEVER).unwrap();
    assert_eq!(flags.decide("acme", "sync"), acme(Stage::Live));
    assert!(flags.health().from_last_good);
    assert!(flags.health().error.unwrap().contains("line 1, column 1: not JSON"));

    acme_in(Stage::Live).write_to(&place.file()).unwrap();
    let mended = health(&flags, |health| health.error.is_none()).await;
    assert!(!mended.from_last_good, "the same document, but from the file again");
}

#[tokio::test]
async fn a_directory_that_comes_later_is_found_by_polling() {
    let place = Place::new();
    acme_in(Stage::Live).write_to(&place.file()).unwrap();
    drop(place.open(NEVER).unwrap());

    let file = place.dir.path().join("mounted").join("flags.json");
    let flags = Flags::open(&file, &place.state_dir(), SOON).unwrap();
    assert_eq!(flags.decide("acme", "sync"), acme(Stage::Live));
    fs::create_dir(file.parent().unwrap()).unwrap();
    acme_in(Stage::Shadow).write_to(&file).unwrap();
    in_force(&flags, &acme_in(Stage::Shadow)).await;
}

#[test]
fn with_neither_a_file_nor_a_last_good_one_there_is_no_answer() {
    let place = Place::new();
    let error = place.open(NEVER).err().unwrap();
    assert!(error.from.contains("flags.json: can't be read"), "{error}");
    assert!(error.last_good.contains("flags-last-good.json: can't be read"), "{error}");

    fs::write(place.file(), "{}").unwrap();
    fs::create_dir(place.state_dir()).unwrap();
    fs::write(place.state_dir().join("flags-last-good.json"), "{}").unwrap();
    assert!(place.open(NEVER).err().unwrap().last_good.contains("refused, 2 to mend"));
}

#[tokio::test]
async fn flags_that_cannot_be_kept_are_in_force_all_the_same_and_the_health_says_so() {
    let place = Place::new();
    acme_in(Stage::Shadow).write_to(&place.file()).unwrap();
    fs::write(place.state_dir(), "a file where the directory should be").unwrap();
    let flags = place.open(SOON).unwrap();
    assert_eq!(flags.decide("acme", "sync"), acme(Stage::Shadow));
    assert!(flags.health().error.unwrap().contains("can't keep the flags in force"));

    fs::remove_file(place.state_dir()).unwrap();
    health(&flags, |health| health.error.is_none()).await;
    assert!(place.state_dir().join("flags-last-good.json").exists());
}

#[test]
fn a_decision_under_reload_never_mixes_two_documents() {
    let place = Place::new();
    // By one document acme is live, by the other shadow: with a flag from each it would be off, or live by the
    // revision that says shadow.
    let documents = [acme_in(Stage::Live), acme_in(Stage::Shadow)];
    let expected: HashMap<_, _> = documents.iter().map(|d| (d.revision(), d.stage("acme", "sync"))).collect();
    documents[0].write_to(&place.file()).unwrap();
    let flags = place.open(NEVER).unwrap();
    let done = AtomicBool::new(false);
    let decided = thread::scope(|scope| {
        let decide = || {
            let mut decided = 0_u64;
            while !done.load(Ordering::Relaxed) {
                let decision = flags.decide("acme", "sync");
                assert_eq!(expected.get(decision.revision.as_str()), Some(&decision.stage), "{decision:?}");
                decided += 1;
            }
            decided
        };
        let deciders = [scope.spawn(decide), scope.spawn(decide), scope.spawn(decide)];
        let reload = async {
            for round in 1..=20 {
                let next = &documents[round % 2];
                next.write_to(&place.file()).unwrap();
                in_force(&flags, next).await;
            }
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let result = scope.spawn(move || runtime.block_on(reload)).join();
        // First, or a failure above would leave the deciders running.
        done.store(true, Ordering::Relaxed);
        result.unwrap();
        deciders.map(|decider| decider.join().unwrap())
    });
    assert!(decided.iter().all(|count| *count > 0), "{decided:?}");
}
