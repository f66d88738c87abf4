use super::*;
use crate::interaction::{Interaction, Payload, Stage};
use crate::policy::Policy;

fn entry(account: &str, key: &str) -> Entry {
    let interaction = Interaction {
        account: account.into(),
        kind: "sync".into(),
        key_made: false,
        after: None,
        exclusive: None,
        key: key.into(),
        payload: Payload::parse(format!(r#"{{"z":1.10,"a":"{key}"}}"#)).unwrap(),
        series: Some("s".into()),
        group: None,
        run_at: None,
        priority: 3,
        policy: Policy::default(),
    };
    Entry::of(&interaction, Stage::Live, "r1", Utc::now())
}

fn open_with(dir: &Path, entries: usize) -> Spool {
    let options = SpoolOptions { entries, bytes: 1 << 20, keep: Duration::from_secs(3_600) };
    Spool::open(dir, options, Arc::new(Metrics::new().unwrap())).unwrap()
}

fn open(dir: &Path) -> Spool {
    open_with(dir, 100)
}

async fn keep(spool: &Spool, key: &str) -> u64 {
    match spool.keep(&entry("a", key)).await.unwrap() {
        Kept::Entry(no) => {
            assert!(spool.due(0, 1_000).iter().all(|(due, _)| *due != no), "its start has no answer yet");
            spool.answered(no);
            no
        }
        Kept::Dropped => panic!("there is room"),
    }
}

async fn keys(spool: &Spool) -> Vec<String> {
    let mut keys = Vec::new();
    for (no, _) in spool.due(0, 1_000) {
        keys.push(spool.read(no).await.unwrap().unwrap().key);
    }
    keys
}

fn file(dir: &Path) -> PathBuf {
    dir.join("spool/entries")
}

#[tokio::test]
async fn what_is_kept_is_there_after_a_restart_byte_for_byte_and_what_is_done_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let spool = open(dir.path());
    for key in ["one", "two", "three"] {
        keep(&spool, key).await;
    }
    spool.done(vec![2]).await.unwrap();
    drop(spool);
    let spool = open(dir.path());
    assert_eq!(keys(&spool).await, ["one", "three"]);
    let back = spool.read(1).await.unwrap().unwrap();
    assert_eq!((back.payload.get(), back.stage, back.priority), (r#"{"z":1.10,"a":"one"}"#, Stage::Shadow, 3));
    assert_eq!(back.interaction().run_at, Some(back.accepted_at));
    let series = crate::interaction::series_id("a", "sync", "s");
    assert!(spool.holds("a") && spool.holds_series(series) && spool.holds_interaction(back.id()));
    assert!(!spool.holds("b") && !spool.is_empty());
    spool.done(vec![1, 3]).await.unwrap();
    assert!(spool.is_empty() && !spool.holds("a") && !spool.holds_series(series));
    // Its file is made smaller after the answer, and before the next question is looked at.
    assert!(spool.read(1).await.unwrap().is_none());
    assert_eq!(std::fs::read(file(dir.path())).unwrap(), record::OPENING, "an empty spool takes no room");
    assert_eq!(keep(&spool, "four").await, 4, "a number is never given twice");
}

#[tokio::test]
async fn wherever_a_crash_tears_the_last_record_the_ones_before_it_are_there() {
    let dir = tempfile::tempdir().unwrap();
    let spool = open(dir.path());
    keep(&spool, "one").await;
    let whole = std::fs::metadata(file(dir.path())).unwrap().len() as usize;
    keep(&spool, "two").await;
    drop(spool);
    let bytes = std::fs::read(file(dir.path())).unwrap();
    for torn in whole..bytes.len() {
        std::fs::write(file(dir.path()), &bytes[..torn]).unwrap();
        let spool = open(dir.path());
        assert_eq!((keys(&spool).await, spool.gaps()), (vec!["one".to_owned()], vec![]), "torn at {torn}");
        keep(&spool, "three").await;
        drop(spool);
        assert_eq!(keys(&open(dir.path())).await, ["one", "three"]);
    }
}

#[tokio::test]
async fn damage_in_the_middle_is_a_gap_in_every_account_and_the_damaged_file_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let spool = open(dir.path());
    for key in ["one", "two", "three"] {
        keep(&spool, key).await;
    }
    let middle = spool.held().entries[&2].offset as usize + 30;
    drop(spool);
    let mut bytes = std::fs::read(file(dir.path())).unwrap();
    bytes[middle] ^= 1;
    std::fs::write(file(dir.path()), &bytes).unwrap();
    for _ in 0..2 {
        let spool = open(dir.path());
        assert_eq!(keys(&spool).await, ["one"]);
        assert_eq!(spool.gaps().len(), 1);
        assert!(spool.gaps()[0].account.is_none() && spool.holds("whoever"));
    }
    let kept = std::fs::read_dir(dir.path().join("spool")).unwrap().map(|file| file.unwrap().path());
    let aside: Vec<_> = kept.filter(|path| path.to_str().unwrap().contains("damaged")).collect();
    assert_eq!(std::fs::read(&aside[0]).unwrap(), bytes);
}

#[tokio::test]
async fn what_finds_no_room_leaves_a_gap_that_survives_a_restart_until_postgres_knows_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let spool = open_with(dir.path(), 1);
    keep(&spool, "one").await;
    for key in ["two", "three"] {
        assert_eq!(spool.keep(&entry("b", key)).await.unwrap(), Kept::Dropped);
    }
    drop(spool);
    let spool = open_with(dir.path(), 1);
    let gap = spool.gaps().pop().unwrap();
    assert_eq!(gap.account.as_deref(), Some("b"));
    assert!(spool.holds("b"));
    // It grows while Postgres is being told.
    assert_eq!(spool.keep(&entry("b", "four")).await.unwrap(), Kept::Dropped);
    spool.told(gap).await.unwrap();
    drop(spool);
    let spool = open_with(dir.path(), 1);
    assert!(spool.holds("b"), "the newer drop is not told yet");
    spool.told(spool.gaps().pop().unwrap()).await.unwrap();
    spool.done(vec![1]).await.unwrap();
    drop(spool);
    assert!(open_with(dir.path(), 1).is_empty());
}

#[tokio::test]
async fn an_entry_that_is_given_up_leaves_a_gap() {
    let dir = tempfile::tempdir().unwrap();
    let spool = open(dir.path());
    let no = keep(&spool, "one").await;
    spool.give_up(no, "refused").await.unwrap();
    drop(spool);
    let spool = open(dir.path());
    assert!(spool.due(0, 9).is_empty() && spool.holds("a"));
}

#[tokio::test]
async fn a_disk_that_refuses_is_told_and_what_is_written_once_it_takes_again_is_whole() {
    let dir = tempfile::tempdir().unwrap();
    let spool = open(dir.path());
    keep(&spool, "one").await;
    drop(spool);
    // A file that can be opened and not be written.
    let held = Arc::new(Mutex::new(Held::default()));
    let options = SpoolOptions { entries: 9, bytes: 1 << 20, keep: Duration::from_secs(60) };
    let metrics = Arc::new(Metrics::new().unwrap());
    let mut log = log::Log::open(&dir.path().join("spool"), options, held, metrics.clone()).unwrap();
    log.break_for_test(&file(dir.path()));
    let (jobs, receiver) = mpsc::channel(8);
    std::thread::spawn(move || log.run(receiver));
    let spool = Spool { path: file(dir.path()), held: Arc::default(), jobs, options, metrics, filled: Arc::default() };
    let error = spool.keep(&entry("a", "two")).await.unwrap_err();
    assert!(matches!(error, SpoolError::Disk { .. }), "{error}");
    drop(spool);
    assert_eq!(keys(&open(dir.path())).await, ["one"]);
}

#[tokio::test]
async fn two_routers_never_share_a_spool() {
    let dir = tempfile::tempdir().unwrap();
    let _one = open(dir.path());
    let options = SpoolOptions { entries: 1, bytes: 1, keep: Duration::from_secs(1) };
    let other = Spool::open(dir.path(), options, Arc::new(Metrics::new().unwrap()));
    assert!(matches!(other.err(), Some(SpoolError::Taken { .. })));
}

#[tokio::test]
async fn many_at_once_are_all_kept_and_a_file_of_what_is_done_is_written_anew() {
    let dir = tempfile::tempdir().unwrap();
    let options = SpoolOptions { entries: 10_000, bytes: 64 << 20, keep: Duration::from_secs(60) };
    let spool = Arc::new(Spool::open(dir.path(), options, Arc::new(Metrics::new().unwrap())).unwrap());
    let text = format!(r#""{}""#, "x".repeat(20_000));
    let kept = (0..400).map(|n| {
        let (spool, payload) = (spool.clone(), Payload::parse(text.clone()).unwrap());
        async move {
            match spool.keep(&Entry { payload, ..entry("a", &n.to_string()) }).await.unwrap() {
                Kept::Entry(no) => spool.answered(no),
                Kept::Dropped => panic!("there is room"),
            }
        }
    });
    futures::future::join_all(kept).await;
    assert_eq!(spool.due(0, 1_000).len(), 400);
    spool.done(spool.due(0, 390).into_iter().map(|(no, _)| no).collect()).await.unwrap();
    // The file is made smaller after the answer and before the next question.
    assert_eq!(keys(&spool).await.len(), 10);
    assert!(std::fs::metadata(file(dir.path())).unwrap().len() < 1 << 20);
    keep(&spool, "another").await;
    drop(spool);
    assert_eq!(keys(&open_with(dir.path(), 100)).await.len(), 11);
}
