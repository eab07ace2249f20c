//! Trees that are deep, wide or full of links: listed in pages, packed, removed, in bounded memory.

use std::{
    fs,
    os::{
        fd::OwnedFd,
        unix::{ffi::OsStrExt, fs::symlink},
    },
};

use berth_proto::{Reason, v1};
use nix::{
    fcntl::{OFlag, open, openat},
    sys::stat::{Mode, mkdirat},
    unistd::{Gid, Uid, fchown},
};
use tonic::Code;

use crate::{
    files::{list, remove},
    rig::*,
};

/// Directories in one another, the user's: `top`, and in it so many of a name. Each is handed out as it is made.
fn chain(rig: &Rig, top: &str, name: &str, deep: usize, made: impl Fn(usize, &OwnedFd)) {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY;
    let mut dir = open(&rig.config.workspace, flags, Mode::empty()).unwrap();
    for at in 0..=deep {
        let name = if at == 0 { top } else { name };
        mkdirat(&dir, name, Mode::from_bits_truncate(0o755)).unwrap();
        dir = openat(&dir, name, flags, Mode::empty()).unwrap();
        fchown(&dir, Some(Uid::from_raw(UID)), Some(Gid::from_raw(GID))).unwrap();
        if at > 0 {
            made(at, &dir);
        }
    }
}

/// The most memory that the agent has had, in bytes.
fn peak(rig: &Rig) -> u64 {
    let config = rig.dir.join("config.json");
    let pids = fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let of = |pid: String| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let ours = line.split(|byte| *byte == 0).any(|word| word == config.as_os_str().as_bytes());
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok().filter(|_| ours)?;
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
        Some(peak.trim().strip_suffix(" kB")?.parse::<u64>().unwrap() << 10)
    };
    pids.filter_map(of).max().expect("it lives")
}

#[tokio::test]
async fn trees_of_any_depth_are_listed_and_removed() {
    let Some(rig) = Rig::start("trees_of_any_depth_are_listed_and_removed").await else { return };
    // Deeper than PATH_MAX.
    chain(&rig, "top", "d", 5000, |at, dir| {
        if at % 100 == 0 {
            openat(dir, "f", OFlag::O_CREAT | OFlag::O_WRONLY, Mode::from_bits_truncate(0o644)).unwrap();
        }
    });
    let entries = list(&rig, "top", 6000).await.unwrap();
    assert_eq!(entries.len(), 5000 + 50);
    assert!(entries.windows(2).all(|pair| pair[0].path.as_bytes() < pair[1].path.as_bytes()));
    assert_eq!(list(&rig, "top", 2).await.unwrap().len(), 2);
    rig.run(sh("mkdir -p locked/a/b; echo x > locked/a/b/c; chmod 000 locked/a/b locked/a; chmod 555 top/d; chmod 000 top/d/d")).await;
    refused(remove(&rig, "top", false).await, Code::FailedPrecondition, Reason::DirectoryNotEmpty);
    remove(&rig, "top", true).await.unwrap();
    remove(&rig, "locked", true).await.unwrap();
    assert_eq!(fs::read_dir(&rig.config.workspace).unwrap().count(), 0);
    refused(remove(&rig, "top", true).await, Code::NotFound, Reason::FileNotFound);
    refused(remove(&rig, ".", true).await, Code::InvalidArgument, Reason::InvalidField);
}

#[tokio::test]
async fn a_listing_of_thousands_comes_in_pages() {
    let Some(rig) = Rig::start("a_listing_of_thousands_comes_in_pages").await else { return };
    rig.run(sh("mkdir many; cd many; seq 1 2500 | xargs touch")).await;
    let entries = list(&rig, "many", 1).await.unwrap();
    assert_eq!(entries.len(), 2500);
    assert!(entries.windows(2).all(|pair| pair[0].path.as_bytes() < pair[1].path.as_bytes()));
    let bad = v1::ListRequest {
        session_id: rig.session.clone(),
        path: "many".into(),
        page_size: 1001,
        ..Default::default()
    };
    refused(rig.files.clone().list(bad).await, Code::InvalidArgument, Reason::InvalidField);
}

/// Red when a level of the walk holds the whole path to it: this chain is 170 MiB of paths then.
#[tokio::test]
async fn a_listing_of_any_depth_costs_little_memory() {
    let Some(rig) = Rig::start("a_listing_of_any_depth_costs_little_memory").await else { return };
    let name = "n".repeat(250);
    chain(&rig, "deep", &name, 1200, |_, _| {});
    fs::create_dir(rig.workspace("wide")).unwrap();
    for at in 0..20_000 {
        fs::write(rig.workspace(&format!("wide/{at:0200}")), "").unwrap();
    }
    let before = peak(&rig);
    // Directories are told down to the first whose path is longer than what is gone into: 64 KiB.
    let entries = list(&rig, "deep", u32::MAX).await.unwrap();
    assert_eq!(entries.len(), 262);
    assert!(entries.windows(2).all(|pair| pair[0].path.len() + 251 == pair[1].path.len()));
    assert_eq!(list(&rig, "wide", u32::MAX).await.unwrap().len(), 20_000);
    assert_eq!(list(&rig, ".", u32::MAX).await.unwrap().len(), 2 + 262 + 20_000);
    // A token is a path, of anybody's making.
    let path = vec![name.as_str(); 1200].join("/");
    let request = v1::ListRequest {
        session_id: rig.session.clone(),
        path: "deep".into(),
        depth: u32::MAX,
        page_token: path.bytes().map(|byte| format!("{byte:02x}")).collect(),
        ..Default::default()
    };
    refused(rig.files.clone().list(request).await, Code::InvalidArgument, Reason::InvalidField);
    let more = peak(&rig) - before;
    assert!(more < 32 << 20, "{more} bytes");
    remove(&rig, "deep", true).await.unwrap();
}

/// Red when what links say is not counted: a page is a message that nobody takes then.
#[tokio::test]
async fn links_that_say_much_are_listed() {
    let Some(rig) = Rig::start("links_that_say_much_are_listed").await else { return };
    fs::create_dir(rig.workspace("links")).unwrap();
    let long = std::ffi::OsStr::from_bytes(&[0xff; 4000]);
    for at in 0..1100 {
        symlink(long, rig.workspace(&format!("links/{at:04}"))).unwrap();
    }
    let entries = list(&rig, "links", 1).await.unwrap();
    assert_eq!(entries.len(), 1100);
    assert!(entries.iter().all(|entry| entry.symlink_target == "\u{fffd}".repeat(4000)));
}

/// Red when the paths of files with several names are kept however long they are.
#[tokio::test]
async fn an_archive_remembers_so_many_bytes_of_names() {
    let Some(rig) = Rig::start("an_archive_remembers_so_many_bytes_of_names").await else { return };
    let inside = vec!["n".repeat(250); 15].join("/");
    let dir = rig.workspace("top").join(&inside);
    fs::create_dir_all(&dir).unwrap();
    for at in 0..2600 {
        fs::write(dir.join(format!("a{at}")), "").unwrap();
        fs::hard_link(dir.join(format!("a{at}")), dir.join(format!("b{at}"))).unwrap();
    }
    let request =
        v1::PackRequest { session_id: rig.session.clone(), path: "top".into(), ..Default::default() };
    let mut stream = rig.files.clone().pack(request).await.unwrap().into_inner();
    let mut ended = None;
    while let Some(message) = stream.message().await.unwrap() {
        if let Some(v1::pack_response::Part::End(end)) = message.part {
            ended = Some(end);
        }
    }
    let end = ended.expect("an end");
    // Those that were not remembered are there once for each name.
    assert_eq!((end.files + end.links, end.skipped), (5200, 0));
    assert!((1000..=(8 << 20) / inside.len() as u64).contains(&end.links), "{}", end.links);
}
