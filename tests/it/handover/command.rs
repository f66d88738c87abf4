//! The command: shows first, does it with --yes, and goes on after a crash.

use std::process::{Command, Output, Stdio};

use super::*;

fn command(world: &World, more: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_crossover"));
    command.args(["handover", &world.account, "--json"]).args(more).envs(world.variables());
    command.env("CROSSOVER_STATE_DIR", world.fresh("state")).stdin(Stdio::null());
    command
}

async fn output(mut command: Command) -> (Output, Value) {
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    let said = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"));
    (output, said)
}

/// Pins so many without an HTTP request for each.
async fn pin(world: &World, many: i32) {
    let pin =
        "select count(crossover.pin($1, 'k' || n, 'sync', 'complete', 'test', null, null, 'default', 0::smallint, null,
        sha256('1'), '1'::json, '{}'::json, 100, interval '1 second')) from generate_series(1, $2) n";
    sqlx::query(pin).bind(&world.account).bind(many).execute(world.pool()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn it_shows_what_would_move_and_does_it_with_yes() {
    let world = World::new(Stage::Complete).await;
    pin(&world, 5).await;
    let (shown, said) = output(command(&world, &[])).await;
    assert_eq!((shown.status.code(), &said["done"]), (Some(2), &Value::Null), "{said}");
    assert_eq!((&said["plan"]["moves"], &said["plan"]["stays"]), (&json!(5), &json!(0)), "{said}");
    assert_eq!(said["plan"]["work"][0]["examples"].as_array().unwrap().len(), 3, "{said}");
    assert_eq!(world.scalar::<i64>("select count(*) from crossover.pins where epoch > 1").await, 0);

    let (none, said) = output(command(&world, &["--kind", "other", "--yes"])).await;
    assert_eq!((none.status.code(), &said["plan"]["moves"]), (Some(0), &json!(0)), "{said}");
    let one = world.id("k3").to_string();
    let (done, said) = output(command(&world, &["--id", &one, "--yes"])).await;
    assert_eq!((done.status.code(), &said["done"]["moved"]), (Some(0), &json!(1)), "{said}");
    let (done, said) = output(command(&world, &["--yes"])).await;
    assert_eq!((done.status.code(), &said["done"]["moved"]), (Some(0), &json!(4)), "{said}");
    let (again, said) = output(command(&world, &["--yes"])).await;
    assert_eq!((again.status.code(), &said["plan"]["moves"]), (Some(0), &json!(0)), "{said}");
    let ended = "select count(*) from crossover.handovers where ended_at is not null and who <> ''";
    assert_eq!(world.scalar::<i64>(ended).await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_in_the_middle_it_goes_on_where_it_was() {
    const MANY: i32 = 1_000;
    let world = World::new(Stage::Complete).await;
    pin(&world, MANY).await;
    // The last to move is a member of a series whose row somebody else has.
    let router = world.node_with(ROUTER, |_| {}).await;
    router.accepts(&world.member("s", "last"), 201).await;
    let mut open = world.pool().begin().await.unwrap();
    open.execute("select from crossover.series for update").await.unwrap();
    let mut killed = command(&world, &["--yes"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let moved = "select count(*) from crossover.pins where epoch = 2";
    until("the most have moved", async || (world.scalar::<i64>(moved).await == i64::from(MANY)).then_some(())).await;
    killed.kill().unwrap();
    killed.wait().unwrap();
    open.commit().await.unwrap();
    let (done, said) = output(command(&world, &["--yes"])).await;
    assert_eq!(done.status.code(), Some(0), "{said}");
    assert_eq!(world.scalar::<i64>(moved).await, i64::from(MANY) + 1);
    let counted = "select sum(moved)::bigint from crossover.handovers";
    assert_eq!(world.scalar::<i64>(counted).await, i64::from(MANY) + 1, "nothing moved twice");
    assert_eq!(world.scalar::<i64>("select count(*) from crossover.outbox where epoch = 2").await, i64::from(MANY) + 1);
    router.stop().await;
}
