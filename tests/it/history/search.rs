//! What is searched is found, page by page, and no search costs more than its time.

use std::process::Command;

use crossover::history::{Cursor, Filter, Found, Search, SearchError};
use crossover::policy::Failure;
use serde_json::Value;

use super::*;

fn search(world: &World) -> Search {
    Search::new(ledger::pool(&world.url, 2, Duration::from_secs(10)).unwrap())
}

async fn all(search: &Search, filter: &Filter, limit: u32) -> Vec<Found> {
    let (mut found, mut after): (Vec<Found>, Option<Cursor>) = (Vec::new(), None);
    loop {
        let page = search.page(filter, after, limit).await.unwrap();
        found.extend(page.items);
        let Some(next) = page.next else { return found };
        after = Some(next.parse().unwrap());
    }
}

fn ids(found: &[Found]) -> Vec<Uuid> {
    found.iter().map(|found| found.id).collect()
}

#[tokio::test]
async fn pins_and_tasks_are_found_newest_first_and_once_each_while_work_comes_in() {
    let world = World::new().await;
    let search = search(&world);
    let mut made = vec![crossover::interaction::interaction_id(ACCOUNT, "first")];
    for n in 0..7 {
        made.push(world.pin(&format!("p{n}"), None).await);
        made.push(world.task("k", 0, None).await);
        made.push(world.task("k", 0, None).await);
    }
    let whole = all(&search, &Filter::default(), 500).await;
    let times: Vec<_> = whole.iter().map(|found| (found.created_at, found.id)).collect();
    assert!(times.is_sorted_by(|a, b| a > b), "newest first");
    made.sort();
    let mut found = ids(&whole);
    found.sort();
    assert_eq!(found, made);

    for limit in [1, 2, 3, 5] {
        let (mut paged, mut after): (Vec<Uuid>, Option<Cursor>) = (Vec::new(), None);
        // What comes in meanwhile is newer, also than the page that is being read.
        let until = Some(whole[0].created_at + TimeDelta::milliseconds(1));
        let filter = Filter { until, ..Filter::default() };
        loop {
            let page = search.page(&filter, after, limit).await.unwrap();
            assert!(page.items.len() <= limit as usize);
            paged.extend(ids(&page.items));
            world.task("k", 0, None).await;
            let Some(next) = page.next else { break };
            after = Some(next.parse().unwrap());
        }
        assert_eq!(paged, ids(&whole), "in pages of {limit}");
    }
}

#[tokio::test]
async fn a_search_narrows_by_account_kind_state_series_group_and_time() {
    let world = World::new().await;
    let search = search(&world);
    let scheduled = world.task("later", 0, Some(Utc::now() + TimeDelta::days(9))).await;
    let running = world.task("k", 0, None).await;
    let held = world.claim().await;
    let ready = world.task("k", 0, None).await;
    let members = [world.pin("1", Some("s")).await, world.pin("2", Some("s")).await];
    let old = world.ended_task("old", 3).await;
    let of = async |filter: Filter| ids(&all(&search, &filter, 10).await);
    let in_state = async |state: &str| of(Filter { state: Some(state.parse().unwrap()), ..Filter::default() }).await;
    assert_eq!(in_state("scheduled").await, [scheduled]);
    assert!(in_state("ready").await.contains(&members[0]));
    assert_eq!(in_state("waiting").await, [members[1]]);
    assert_eq!(in_state("cancelled").await, [crossover::interaction::interaction_id(ACCOUNT, "first")]);
    let _ = (running, ready, held);
    assert_eq!(of(Filter { kind: Some("later".to_owned()), ..Filter::default() }).await, [scheduled]);
    assert!(of(Filter { account: Some("nobody".to_owned()), ..Filter::default() }).await.is_empty());
    assert_eq!(of(Filter { account: Some(ACCOUNT.to_owned()), ..Filter::default() }).await.len(), 6);
    assert!(of(Filter { group: Some("other".to_owned()), ..Filter::default() }).await.is_empty());
    let mut series = of(Filter { series: Some("s".to_owned()), ..Filter::default() }).await;
    series.reverse();
    assert_eq!(series, members);
    let named = Filter {
        account: Some(ACCOUNT.to_owned()),
        kind: Some("k".to_owned()),
        series: Some("s".to_owned()),
        ..Filter::default()
    };
    let found = all(&search, &named, 10).await;
    assert_eq!(found[0].reason.as_deref(), Some("behind number 1 of its series"));
    // Not of the last day.
    assert!(of(Filter { kind: Some("old".to_owned()), ..Filter::default() }).await.is_empty());
    let since = Some(Utc::now() - TimeDelta::days(4));
    let found = all(&search, &Filter { kind: Some("old".to_owned()), since, ..Filter::default() }, 10).await;
    assert_eq!((ids(&found), found[0].state.as_str(), found[0].attempts), (vec![old], "succeeded", 1));
    let until = Some(Utc::now() - TimeDelta::days(2));
    assert_eq!(of(Filter { since, until, ..Filter::default() }).await, [old]);
}

#[tokio::test]
async fn a_task_that_runs_and_one_that_failed_say_so() {
    let world = World::new().await;
    let search = search(&world);
    let id = world.task("k", 0, None).await;
    let held = world.claim().await;
    let shown = search.show(id).await.unwrap().unwrap();
    assert_eq!((shown.found.state.as_str(), shown.found.attempts), ("running", 0));
    assert_eq!(shown.payload.unwrap().get(), "\"k\"");
    assert!(shown.result.is_none() && shown.attempts_made.is_empty());
    let end = Finish {
        failure: Some(Failure::Permanent),
        error: Some("the door is shut".to_owned()),
        ..Finish::of(&held[0], Some(Outcome::Failed))
    };
    world.tasks.finish(world.worker, &[end]).await.unwrap();
    let shown = search.show(id).await.unwrap().unwrap();
    assert_eq!((shown.found.state.as_str(), shown.found.reason.as_deref()), ("failed", Some("the door is shut")));
    assert_eq!((shown.attempts_made.len(), shown.attempts_made[0].attempt), (1, 1));
    assert!(search.show(Uuid::new_v4()).await.unwrap().is_none());
}

#[tokio::test]
async fn a_search_that_would_read_too_much_is_given_up_and_says_so() {
    let world = World::new().await;
    let search = search(&world);
    world.task("k", 0, None).await;
    // As if there were so much to read.
    world.sql(
        "create or replace function crossover.lowest_id(p_at timestamptz) returns uuid language plpgsql volatile as $$
         begin perform pg_sleep(60); return '00000000-0000-7000-8000-000000000000'; end $$",
    )
    .await;
    let began = std::time::Instant::now();
    let error = search.page(&Filter::default(), None, 10).await.unwrap_err();
    assert!(matches!(error, SearchError::TooMuch), "{error}");
    assert!(error.to_string().contains("name an account, or a shorter time"));
    assert!(began.elapsed() < Duration::from_secs(30));
}

#[tokio::test]
async fn a_search_of_an_account_reads_its_index_and_tasks_are_read_in_the_order_of_their_ids() {
    let world = World::new().await;
    world.sql(
        "insert into crossover.pins (id, created_at, run_at, weight, on_temporal, on_postgres, stage, owner, account, kind, key, grp, flag_revision, payload_hash, outcome, ended_at)
         select crossover.interaction_id(a, k), now() - n * interval '1 second', now(), 100, false, true, 'complete', 'postgres', a, 'k', k, 'default', 'r', sha256('1'), 'succeeded', now()
         from (select n, 'account' || n % 100 as a, 'key' || n as k from generate_series(1, 20000) n) of;
         analyze crossover.pins",
    )
    .await;
    let search = search(&world);
    let filter = Filter { account: Some("account7".to_owned()), ..Filter::default() };
    assert_eq!(search.page(&filter, None, 50).await.unwrap().items.len(), 50);
    // Postgres tells late what was read, also before these rows: so what counts is rows, of which a scan reads all.
    let scanned = "select coalesce(max(idx_scan), 0) from pg_stat_user_indexes where indexrelname = 'pins_of_account'";
    until("the index was read", async || (world.count(scanned).await > 0).then_some(())).await;
    let read = "select coalesce(sum(seq_tup_read), 0)::bigint from pg_stat_user_tables where relname like 'pins%'";
    assert!(world.count(read).await < 20_000);
}

#[tokio::test]
async fn the_command_lists_and_shows_for_people_and_for_machines() {
    let world = World::new().await;
    let folder = tempfile::tempdir().unwrap();
    let run = async |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_crossover"));
        command.args(arguments).current_dir(folder.path()).env("CROSSOVER_POSTGRES_URL", &world.url);
        tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
    };
    let text = async |arguments: &[&str]| {
        let output = run(arguments).await;
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let waiting = world.pin("2", Some("s")).await;
    let (ready, member) = (world.task("k", 0, None).await, world.pin("3", Some("s")).await);
    let listed = text(&["tasks"]).await;
    for id in [waiting, ready, member] {
        assert!(listed.contains(&id.to_string()), "{listed}");
    }
    let columns: Vec<_> = listed.lines().filter_map(|line| line.find(" a ")).collect();
    assert!(columns.len() >= 4 && columns.iter().all(|at| *at == columns[0]), "it lines up:\n{listed}");
    let json: Value = serde_json::from_str(&text(&["tasks", "--state", "waiting", "--json"]).await).unwrap();
    assert_eq!(json["items"][0]["id"], member.to_string());
    let page: Value = serde_json::from_str(&text(&["tasks", "--limit", "2", "--json"]).await).unwrap();
    let next = page["next"].as_str().unwrap();
    let rest: Value = serde_json::from_str(&text(&["tasks", "--cursor", next, "--json"]).await).unwrap();
    assert_eq!(page["items"].as_array().unwrap().len() + rest["items"].as_array().unwrap().len(), 4);

    let shown = text(&["tasks", "show", &ready.to_string()]).await;
    assert!(shown.contains("a free slot of a Postgres worker") && shown.contains("\"k\""), "{shown}");
    let shown: Value = serde_json::from_str(&text(&["tasks", "show", &ready.to_string(), "--json"]).await).unwrap();
    assert_eq!((&shown["state"], &shown["payload"]), (&Value::from("ready"), &Value::from("k")));
    for (wrong, word) in [
        (vec!["tasks", "--state", "lost"], "no state"),
        (vec!["tasks", "--limit", "1000000"], "10000"),
        (vec!["tasks", "--since", "soon"], "neither a time"),
        (vec!["tasks", "--cursor", "x"], "no cursor"),
        (vec!["tasks", "show", "6fd1a3a0-8a3e-4a4c-9c55-6ad1f3b1f6f1"], "nothing is kept"),
    ] {
        let output = run(&wrong).await;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains(word), "{wrong:?}: {said}");
    }
}
