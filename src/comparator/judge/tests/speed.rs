//! How many pairs are judged a second, on one core: `cargo test --release --lib pairs_a_second -- --ignored --nocapture`.

use std::hint::black_box;
use std::time::Instant as Clock;

use super::*;

#[test]
#[ignore = "a measurement"]
fn pairs_a_second_on_one_core() {
    const PAIRS: usize = 1_000_000;
    let (world, plain, member) = (World::default(), clean(Stage::Shadow), member(Stage::Live));
    let retried = retried(vec![failed(1, true, 0, 10, 120, Some(1_000)), attempt(2, true, 1_120, 1_130, 1_300)]);
    let began = Clock::now();
    for n in 0..PAIRS {
        let facts = [&plain, &member, &plain, &retried][n % 4];
        assert_eq!(black_box(world.judge(black_box(facts))).verdict, Verdict::Matched);
    }
    let rate = PAIRS as f64 / began.elapsed().as_secs_f64();
    println!("{rate:.0} pairs a second");
}
