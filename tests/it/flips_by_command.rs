//! Flips by command, on the real servers: the flags file changed where it lives, routers that follow, decisions,
//! overrides, and routers that don't answer.

mod measure;
mod unleash;

use std::process::{Command, Output};

use crossover::flags::edit::{Known, Wish};
use crossover::flags::{Document, DocumentBuilder};
use crossover::flips::{self, Place};
use crossover::interaction::Stage;
use serde_json::Value;

use crate::bridge::child::Child;
use crate::bridge::until;
use crate::bridge::world::{Node, ROUTER, World};

/// The program, as an operator runs it in this world.
async fn run(world: &World, arguments: &[&str]) -> (i32, Value) {
    run_with(world, arguments, &[]).await
}

/// The same with more variables.
async fn run_with(world: &World, arguments: &[&str], set: &[(&str, &str)]) -> (i32, Value) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_crossover"));
    command.args(arguments).arg("--json").envs(world.variables()).env("CROSSOVER_OPERATOR", "ana@bastion");
    command.env("CROSSOVER_STATE_DIR", world.fresh("operator")).current_dir(world.flags.parent().unwrap());
    command.envs(set.iter().copied());
    let Output { status, stdout, stderr } =
        tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    let said = serde_json::from_slice(&stdout)
        .unwrap_or_else(|_| panic!("{} {}", String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr)));
    (status.code().unwrap(), said)
}

/// A world whose flags name accounts, not everybody.
async fn world() -> World {
    let world = World::new(Stage::Off).await;
    let document = DocumentBuilder::default().account(Stage::Shadow, &world.account).build().unwrap();
    document.write_to(&world.flags).unwrap();
    world
}

async fn stage_of(node: &Node, world: &World, key: &str) -> String {
    let answer = node.post(&world.request(key)).await;
    answer.body["stage"].as_str().unwrap_or_else(|| panic!("{answer:?}")).to_owned()
}

/// The decisions of the world's account, the first first, once there are `n`.
async fn decisions(world: &World, n: usize) -> Vec<Value> {
    until(&format!("there are {n} decisions"), async || {
        let (_, said) = run(world, &["decisions", &world.account]).await;
        let mut rows = said.as_array().unwrap().clone();
        rows.reverse();
        (rows.len() >= n).then_some(rows)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flip_is_seen_by_every_router_and_kept_with_who_and_why() {
    let world = world().await;
    let one = world.node_with(ROUTER, |_| {}).await;
    let other = Child::serve(&world, "router", &[]).await;
    assert_eq!(stage_of(&one, &world, "before").await, "shadow");

    let account = world.account.as_str();
    let (code, said) = run(&world, &["cutover", account, "--reason", "ready"]).await;
    assert_eq!((code, &said["done"], said["from"].as_str()), (2, &Value::Bool(false), Some("shadow")), "{said}");
    assert_eq!(Document::read(&world.flags).unwrap().stage(account, "sync"), Stage::Shadow, "nothing without --yes");

    let (code, said) = run(&world, &["cutover", account, "--reason", "ready", "--yes"]).await;
    assert_eq!(code, 0, "{said}");
    assert_eq!(said["routers"].as_array().unwrap().len(), 2, "{said}");
    assert!(said["took_ms"].as_f64().is_some(), "{said}");
    for (n, node) in [&one, &other.node].into_iter().enumerate() {
        assert_eq!(stage_of(node, &world, &format!("after {n}")).await, "live");
    }
    let (code, said) = run(&world, &["rollback", account, "--reason", "slow", "--yes"]).await;
    assert_eq!((code, said["from"].as_str(), said["to"].as_str()), (0, Some("live"), Some("shadow")), "{said}");
    for (n, node) in [&one, &other.node].into_iter().enumerate() {
        assert_eq!(stage_of(node, &world, &format!("back {n}")).await, "shadow");
    }
    let told = decisions(&world, 2).await;
    assert_eq!(told.len(), 2, "one of two routers writes a change, and all kinds are one: {told:#?}");
    for (row, (from, to, why)) in told.iter().zip([("shadow", "live", "ready"), ("live", "shadow", "slow")]) {
        let found = [&row["from"], &row["to"], &row["why"], &row["who"], &row["source"]].map(|v| v.as_str().unwrap());
        assert_eq!(found, [from, to, why, "ana@bastion", "file"]);
        assert_eq!(row["kind"], Value::Null);
    }
    one.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_edit_by_hand_is_a_decision_too() {
    let world = world().await;
    let node = world.node_with(ROUTER, |_| {}).await;
    stage_of(&node, &world, "known").await;
    until("the account is known", async || {
        let known = "select count(*) from crossover.standings where stage = 'shadow'";
        (world.scalar::<i64>(known).await == 2).then_some(())
    })
    .await;
    let mut edit = DocumentBuilder::default();
    edit.account(Stage::Shadow, &world.account).kind(Stage::Live, &world.account, "sync");
    edit.build().unwrap().write_to(&world.flags).unwrap();
    let told = decisions(&world, 1).await;
    assert_eq!([&told[0]["kind"], &told[0]["to"]].map(|v| v.as_str().unwrap()), ["sync", "live"]);
    assert_eq!((&told[0]["who"], &told[0]["source"]), (&Value::Null, &Value::from("file")));
    let view = "select stage from crossover.stages where kind = 'sync' and source = 'file'";
    assert_eq!(world.scalar::<String>(view).await, "live");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_router_is_named_and_the_exit_code_says_so() {
    let world = world().await;
    let node = world.node_with(ROUTER, |_| {}).await;
    let other = Child::serve(&world, "router", &[]).await;
    other.pause();
    let (code, said) = run(&world, &["cutover", &world.account, "--yes", "--timeout", "20s"]).await;
    assert_eq!(code, 3, "{said}");
    let states: Vec<_> = said["routers"].as_array().unwrap().iter().map(|r| r["state"].as_str().unwrap()).collect();
    assert_eq!(states, ["seen", "silent"], "{said}");
    let silent = said["routers"][1]["id"].as_str().unwrap();

    let (code, _) = run(&world, &["routers", "--forget", silent, "--disk-gone"]).await;
    assert_eq!(code, 2, "not without --yes");
    let (code, _) = run(&world, &["routers", "--forget", silent, "--disk-gone", "--yes"]).await;
    assert_eq!(code, 0);
    let (code, said) = run(&world, &["rollback", &world.account, "--yes"]).await;
    assert_eq!(code, 0, "{said}");

    other.go_on();
    until("the forgotten one, which lives, is registered again", async || {
        let (_, said) = run(&world, &["routers"]).await;
        (said.as_array().unwrap().len() == 2).then_some(())
    })
    .await;
    node.stop().await;
    let (_, said) = run(&world, &["routers"]).await;
    assert_eq!(said.as_array().unwrap().len(), 1, "the one that was stopped said goodbye: {said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn operators_at_once_lose_nothing_of_each_other() {
    let world = world().await;
    let accounts: Vec<String> = (0..6).map(|n| format!("{}-{n}", world.account)).collect();
    let flips = accounts.iter().map(async |account| {
        let (code, said) = run(&world, &["cutover", account, "--yes"]).await;
        assert_eq!(code, 0, "{said}");
    });
    futures::future::join_all(flips).await;
    let document = Document::read(&world.flags).unwrap();
    for account in &accounts {
        assert_eq!(document.stage(account, "sync"), Stage::Live);
    }
    assert_eq!(document.stage(&world.account, "sync"), Stage::Shadow);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_operators_who_roll_back_at_once_both_succeed_and_work_stays_where_it_was_pinned() {
    let world = world().await;
    let account = world.account.as_str();
    let (node, other) = (world.node().await, Child::serve(&world, "router", &[]).await);
    let (code, said) = run(&world, &["cutover", account, "--yes"]).await;
    assert_eq!(code, 0, "{said}");
    let later = serde_json::json!({ "run_at": chrono::Utc::now() + chrono::TimeDelta::seconds(3) });
    let waits = crate::bridge::world::with(world.request("waits"), later);
    assert_eq!(node.accepts(&waits, 201).await.body["owner"], "postgres");
    let order = ["rollback", account, "--reason", "slow", "--yes"];
    let (one, another) = tokio::join!(run(&world, &order), run(&world, &order));
    for (code, said) in [&one, &another] {
        assert_eq!((*code, said["to"].as_str()), (0, Some("shadow")), "{said}");
    }
    assert_eq!(Document::read(&world.flags).unwrap().stage(account, "sync"), Stage::Shadow);
    for (n, node) in [&node, &other.node].into_iter().enumerate() {
        assert_eq!(stage_of(node, &world, &format!("after {n}")).await, "shadow");
    }
    let told = decisions(&world, 2).await;
    // A kind that its router noted apart from the account is told apart.
    let steps: Vec<_> = told.iter().map(|row| (row["kind"].as_str(), &row["from"], &row["to"])).collect();
    for (n, step) in steps.iter().enumerate() {
        assert!(!steps[..n].contains(step), "one rollback, whoever asked: {steps:?}");
    }
    assert!(
        steps.iter().any(|(_, from, to)| (from.as_str(), to.as_str()) == (Some("live"), Some("shadow"))),
        "{steps:?}"
    );
    assert_eq!(world.succeeded("waits").await.pin.owner, crossover::interaction::Side::Postgres);
    assert_eq!(world.runner.sides("waits"), ["postgres"]);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_file_keeps_its_mode_and_a_link_stays_a_link() {
    use std::os::unix::fs::PermissionsExt;
    let world = world().await;
    let real = world.fresh("real.json");
    std::fs::rename(&world.flags, &real).unwrap();
    std::os::unix::fs::symlink(&real, &world.flags).unwrap();
    std::fs::set_permissions(&real, PermissionsExt::from_mode(0o640)).unwrap();
    let (code, said) = run(&world, &["cutover", &world.account, "--yes"]).await;
    assert_eq!(code, 0, "{said}");
    assert!(std::fs::symlink_metadata(&world.flags).unwrap().is_symlink());
    assert_eq!(std::fs::metadata(&real).unwrap().permissions().mode() & 0o7777, 0o640);
    assert_eq!(Document::read(&real).unwrap().stage(&world.account, "sync"), Stage::Live);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_override_beats_the_flags_while_they_are_away_and_ends_by_itself() {
    let world = world().await;
    let node = world.node_with(ROUTER, |_| {}).await;
    assert_eq!(stage_of(&node, &world, "before").await, "shadow");
    std::fs::remove_file(&world.flags).unwrap();
    let account = world.account.as_str();
    let order = ["override", account, "--stage", "live", "--for", "4s", "--reason", "flags are away", "--yes"];
    let (code, said) = run(&world, &order).await;
    assert_eq!(code, 0, "{said}");
    assert_eq!(stage_of(&node, &world, "during").await, "live");
    let revision = world.story("during").await.unwrap().pin.flag_revision;
    assert!(revision.starts_with("override:"), "{revision}");
    let (code, _) = run(&world, &order).await;
    assert_eq!(code, 1, "one at a time");
    until("it has ended by itself", async || {
        let key = format!("after {}", uuid::Uuid::new_v4());
        (stage_of(&node, &world, &key).await == "shadow").then_some(())
    })
    .await;
    let told = decisions(&world, 2).await;
    let why: Vec<_> = told.iter().map(|row| row["why"].as_str().unwrap()).collect();
    assert_eq!(why[0], "flags are away");
    assert!(why[1].ends_with("has run out"), "{why:?}");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_override_of_a_kind_shows_while_it_is_in_force_and_can_be_ended_by_hand() {
    let world = world().await;
    let node = world.node_with(ROUTER, |_| {}).await;
    stage_of(&node, &world, "before").await;
    let account = world.account.as_str();
    let order = ["override", account, "--kind", "sync", "--stage", "off", "--for", "1h", "--reason", "test", "--yes"];
    let (code, said) = run(&world, &order).await;
    assert_eq!(code, 0, "{said}");
    assert_eq!(stage_of(&node, &world, "during").await, "off");
    let metrics = node.get("/metrics").await.body.as_str().unwrap().to_owned();
    assert!(metrics.contains("crossover_overrides_active 1"), "{metrics}");
    let (_, said) = run(&world, &["override"]).await;
    assert_eq!(said[0]["account"], account);
    let (code, said) = run(&world, &["override", account, "--kind", "sync", "--end", "--yes"]).await;
    assert_eq!(code, 0, "{said}");
    assert_eq!(stage_of(&node, &world, "after").await, "shadow");
    let told = decisions(&world, 2).await;
    assert_eq!(told[1]["who"], "ana@bastion");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_override_to_live_of_an_account_with_unpinned_work_stays_with_temporal() {
    let world = World::new(Stage::Off).await;
    let node = world.node_with(ROUTER, |_| {}).await;
    assert_eq!(stage_of(&node, &world, "unpinned").await, "off");
    let order = ["override", &world.account, "--stage", "live", "--for", "1m", "--reason", "test", "--yes"];
    let (code, said) = run(&world, &order).await;
    assert_eq!(code, 0, "{said}");
    assert!(said["notes"].to_string().contains("without a pin"), "{said}");
    let answer = node.post(&world.request("next")).await;
    assert_eq!(answer.body["owner"], "temporal", "{answer:?}");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollback_works_without_postgres_and_says_what_it_could_not_do() {
    let world = world().await;
    let account = world.account.clone();
    let (code, _) = run(&world, &["cutover", &account, "--yes"]).await;
    assert_eq!(code, 0);
    let away = [
        ("CROSSOVER_POSTGRES_URL", "postgres://nobody@127.0.0.1:9/none"),
        ("CROSSOVER_POSTGRES_CONNECT_TIMEOUT", "200ms"),
    ];
    let (code, said) = run_with(&world, &["rollback", &account, "--yes"], &away).await;
    assert_eq!((code, &said["done"]), (3, &Value::Bool(true)), "{said}");
    assert!(said["notes"].to_string().contains("Postgres can't be asked"), "{said}");
    assert_eq!(Document::read(&world.flags).unwrap().stage(&account, "sync"), Stage::Shadow);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_thousand_standings_follow_a_flip_of_everybody() {
    let world = World::new(Stage::Shadow).await;
    sqlx::query(
        "insert into crossover.standings (account, kind, stage, revision)
         select 'a' || n / 2, case n % 2 when 0 then '' else 'sync' end, 'shadow', 'file:0' from generate_series(0, 99999) n",
    )
    .execute(world.pool())
    .await
    .unwrap();
    let node = world.node_with(ROUTER, |_| {}).await;
    world.flip(Stage::Live, &[&node]).await;
    until("all of them are live", async || {
        let left = "select count(*) from crossover.standings where stage <> 'live'";
        (world.scalar::<i64>(left).await == 0).then_some(())
    })
    .await;
    assert_eq!(world.scalar::<i64>("select count(*) from crossover.decisions").await, 50_000, "one an account");
    node.stop().await;
}

/// A copy of the flags as they are: whoever follows it sees no flip.
fn copy_of(world: &World) -> std::path::PathBuf {
    let copy = world.fresh("copy.json");
    std::fs::copy(&world.flags, &copy).unwrap();
    copy
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flip_of_an_account_is_acknowledged_only_when_its_kinds_stand_there_too() {
    let world = world().await;
    let account = world.account.as_str();
    let mut flags = DocumentBuilder::default();
    flags.account(Stage::Shadow, account).kind(Stage::Live, account, "sync");
    flags.build().unwrap().write_to(&world.flags).unwrap();
    let copy = copy_of(&world);
    let one = world.node_with(ROUTER, |_| {}).await;
    let late = world.node_with(ROUTER, |config| config.flags.file = copy.clone()).await;
    let (code, said) = run(&world, &["rollback", account, "--reason", "slow", "--yes", "--timeout", "2s"]).await;
    assert_eq!((code, said["from"].as_str()), (3, Some("shadow")), "{said}");
    let states: Vec<_> = said["routers"].as_array().unwrap().iter().map(|r| r["state"].as_str().unwrap()).collect();
    assert_eq!(states, ["seen", "late"], "{said}");
    let told = decisions(&world, 1).await;
    assert_eq!([&told[0]["kind"], &told[0]["from"], &told[0]["to"]], ["sync", "live", "shadow"]);
    assert_eq!([&told[0]["who"], &told[0]["why"]], ["ana@bastion", "slow"]);

    std::fs::copy(&world.flags, &copy).unwrap();
    let (code, said) = run(&world, &["rollback", account, "--yes"]).await;
    assert_eq!(code, 0, "{said}");
    one.stop().await;
    late.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_override_does_not_acknowledge_a_flip_of_the_flags_below_it() {
    let world = world().await;
    let copy = copy_of(&world);
    let node = world.node_with(ROUTER, |config| config.flags.file = copy.clone()).await;
    let account = world.account.as_str();
    let order = ["override", account, "--stage", "live", "--for", "10m", "--reason", "test", "--yes"];
    let (code, said) = run(&world, &order).await;
    assert_eq!((code, said["took_ms"].is_number()), (0, true), "{said}");
    let (code, said) = run(&world, &["cutover", account, "--yes", "--timeout", "2s"]).await;
    assert_eq!((code, said["routers"][0]["state"].as_str()), (3, Some("late")), "{said}");
    assert!(said["notes"].to_string().contains("keeps it in live until"), "{said}");
    std::fs::copy(&world.flags, &copy).unwrap();
    let (code, said) = run(&world, &["cutover", account, "--yes"]).await;
    assert_eq!(code, 0, "{said}");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_router_with_older_flags_writes_nothing_but_the_override_when_one_begins() {
    let world = world().await;
    let copy = copy_of(&world);
    let one = world.node_with(ROUTER, |_| {}).await;
    let late = world.node_with(ROUTER, |config| config.flags.file = copy.clone()).await;
    let account = world.account.as_str();
    let (code, said) = run(&world, &["cutover", account, "--yes", "--timeout", "1s"]).await;
    assert_eq!(code, 3, "{said}");
    assert_eq!(decisions(&world, 1).await[0]["to"], "live");
    one.stop().await;
    // Behind the account in the order of a look, so what is said of the account is written with it or not at all.
    let other = format!("{account}-other");
    let order = ["override", &other, "--stage", "shadow", "--for", "10m", "--reason", "test", "--yes"];
    let (code, said) = run(&world, &order).await;
    assert_eq!(code, 0, "{said}");
    until("the override is a decision", async || {
        let written = "select count(*) from crossover.decisions where source = 'override'";
        (world.scalar::<i64>(written).await == 1).then_some(())
    })
    .await;
    assert_eq!(decisions(&world, 1).await.len(), 1, "the older flags are no news");
    late.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_override_may_last_for_a_whole_day() {
    let world = world().await;
    let begun = "select count(crossover.begin_override('a' || n, null, 'off', '24 hours', 'ana', 'test'))
        from generate_series(1, 500) n";
    assert_eq!(world.scalar::<i64>(begun).await, 500);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_override_that_postgres_did_not_confirm_is_said_to_be_in_force_perhaps() {
    let world = world().await;
    for slow in [
        "create function crossover.dawdle() returns trigger language plpgsql as $$
            begin perform pg_sleep(4); return new; end $$",
        "create trigger dawdle before insert on crossover.overrides for each row execute function crossover.dawdle()",
    ] {
        sqlx::query(slow).execute(world.pool()).await.unwrap();
    }
    let account = world.account.as_str();
    let order = ["override", account, "--stage", "off", "--for", "1h", "--reason", "test", "--yes"];
    let (code, said) = run(&world, &order).await;
    let error = said["error"].as_str().unwrap();
    assert!(code == 1 && error.contains("MAY BE IN FORCE"), "{said}");
    assert!(error.contains(&format!("crossover override {account} --end")), "{error}");
    until("it is in force after all", async || {
        (world.scalar::<i64>("select count(*) from crossover.overrides").await == 1).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollback_does_not_wait_for_a_postgres_that_hangs() {
    let world = world().await;
    let account = world.account.clone();
    let (code, _) = run(&world, &["cutover", &account, "--yes"]).await;
    assert_eq!(code, 0);
    // Connections come into being, and nobody ever says a word.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("postgres://nobody@{}/none", silent.local_addr().unwrap());
    let hangs = [("CROSSOVER_POSTGRES_URL", url.as_str()), ("CROSSOVER_POSTGRES_CONNECT_TIMEOUT", "60s")];
    let began = std::time::Instant::now();
    let (code, said) = run_with(&world, &["rollback", &account, "--yes"], &hangs).await;
    assert_eq!((code, &said["done"]), (3, &Value::Bool(true)), "{said}");
    assert!(said["notes"].to_string().contains("has not answered within 5s"), "{said}");
    assert!(began.elapsed() < std::time::Duration::from_secs(30), "{:?}", began.elapsed());
    assert_eq!(Document::read(&world.flags).unwrap().stage(&account, "sync"), Stage::Shadow);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flip_is_refused_when_it_would_be_another_than_the_one_that_was_shown() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("flags.json");
    let write = |edit: &dyn Fn(&mut DocumentBuilder)| {
        let mut flags = DocumentBuilder::default();
        edit(flags.account(Stage::Shadow, "acme").account(Stage::Live, "acme"));
        flags.build().unwrap().write_to(&file).unwrap();
    };
    let (place, known) = (Place::File(file.clone()), Known::default());
    let wish = Wish { account: "acme".to_owned(), kind: None, stage: Stage::Shadow };
    let flip =
        async |shown| flips::flip(&place, None, shown, &known, ("ana", None), std::time::Duration::from_secs(5)).await;
    write(&|_| {});
    let shown = place.plan(&wish, &known).await.unwrap();
    write(&|flags| _ = flags.kind(Stage::Complete, "acme", "sync"));
    let before = std::fs::read_to_string(&file).unwrap();
    let refused = flip(shown).await.unwrap_err().to_string();
    assert!(refused.contains("needs other changes now") && refused.contains("crossover-complete"), "{refused}");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), before);

    write(&|_| {});
    let shown = place.plan(&wish, &known).await.unwrap();
    write(&|flags| _ = flags.account(Stage::Complete, "acme"));
    let refused = flip(shown).await.unwrap_err().to_string();
    assert!(refused.contains("was in live and is in complete"), "{refused}");

    write(&|_| {});
    let shown = place.plan(&wish, &known).await.unwrap();
    write(&|flags| _ = flags.account(Stage::Live, "globex"));
    flip(shown).await.unwrap();
    assert_eq!(
        Document::read(&file).unwrap().stage("acme", "sync"),
        Stage::Shadow,
        "an edit for others is no other flip"
    );
}
