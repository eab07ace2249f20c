use std::os::unix::fs::{PermissionsExt, symlink};

use super::*;

struct Kept {
    secrets: Arc<Secrets>,
    dir: tempfile::TempDir,
}

fn tenant(name: &str) -> Tenant {
    name.parse().unwrap()
}

impl Kept {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self { secrets: Secrets::new(dir.path()), dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join("secrets/team-a").join(name)
    }

    async fn set(&self, name: &str, value: &str, ttl: Option<Duration>) -> Result<Secret, Error> {
        let value = Bytes::copy_from_slice(value.as_bytes());
        self.secrets.set(tenant("team-a"), name.to_owned(), value, ttl).await
    }

    async fn get_as(&self, of: &str, name: &str) -> Result<Bytes, String> {
        let mut values = self.secrets.values(&tenant(of), BTreeSet::from([name.to_owned()])).await;
        assert_eq!(values.len(), 1);
        match values.remove(0).is.expect("it says what it is") {
            Is::Value(value) => Ok(value),
            Is::Unusable(why) => Err(why),
        }
    }

    async fn get(&self, name: &str) -> Result<Bytes, String> {
        self.get_as("team-a", name).await
    }

    async fn listed(&self, name: &str) -> Secret {
        let all = self.secrets.list(None).await.unwrap();
        all.into_iter().find(|secret| secret.name == name).expect("it is listed")
    }
}

#[tokio::test]
async fn a_new_value_is_the_next_that_is_given() {
    let kept = Kept::new();
    kept.set("db", "old", Some(Duration::from_secs(60))).await.unwrap();
    let set = kept.set("db", "newer", None).await.unwrap();
    assert_eq!((set.bytes, set.expires_at, set.unusable), (5, None, None));
    assert_eq!(kept.get("db").await.unwrap(), "newer");
    // An operator's own program may write the file too.
    fs::write(kept.path("db"), "newest").unwrap();
    assert_eq!(kept.get("db").await.unwrap(), "newest");
}

#[tokio::test]
async fn a_file_is_the_owners_alone() {
    let kept = Kept::new();
    kept.set("db", "x", Some(Duration::from_secs(60))).await.unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o7777;
    assert_eq!((mode(&kept.path("db")), mode(&kept.path("db.expires"))), (0o600, 0o600));
    assert_eq!((mode(&kept.path("")), mode(&kept.dir.path().join("secrets"))), (0o700, 0o700));
    let names: Vec<_> = fs::read_dir(kept.path("")).unwrap().collect();
    assert_eq!(names.len(), 2, "nothing is left over: {names:?}");
}

#[tokio::test]
async fn another_tenants_is_not_there() {
    let kept = Kept::new();
    kept.set("db", "x", None).await.unwrap();
    assert_eq!(kept.get_as("team-b", "db").await.unwrap_err(), "there is none");
    assert_eq!(kept.secrets.list(Some(tenant("team-b"))).await.unwrap(), []);
    let error = kept.secrets.remove(tenant("team-b"), "db".to_owned()).await.unwrap_err();
    assert_eq!(error.reason(), Reason::SecretNotFound);
    assert_eq!(kept.get("db").await.unwrap(), "x");
}

#[tokio::test]
async fn what_can_not_be_given_says_why() {
    let kept = Kept::new();
    let fails = async |why: &str| {
        let said = kept.get("s").await.unwrap_err();
        assert!(said.contains(why), "{said:?} does not say {why:?}");
        // The listing says the same, unless there is nothing to list.
        if kept.path("s").symlink_metadata().is_ok() {
            assert_eq!(kept.listed("s").await.unusable, Some(said));
        }
    };
    fails("there is none").await;
    kept.set("s", "x", Some(Duration::ZERO)).await.unwrap();
    fails("it has expired").await;
    fs::write(kept.path("s.expires"), "soon").unwrap();
    fails("no RFC 3339 time").await;
    fs::remove_file(kept.path("s.expires")).unwrap();
    assert_eq!(kept.get("s").await.unwrap(), "x");

    for mode in [0o640, 0o604, 0o620] {
        fs::set_permissions(kept.path("s"), fs::Permissions::from_mode(mode)).unwrap();
        fails("others may use its file").await;
    }
    fs::set_permissions(kept.path("s"), fs::Permissions::from_mode(0o600)).unwrap();
    fs::write(kept.path("s"), "").unwrap();
    fails("it is empty").await;
    fs::write(kept.path("s"), vec![b'x'; VALUE_MAX + 1]).unwrap();
    fails("larger than").await;

    fs::rename(kept.path("s"), kept.path("elsewhere")).unwrap();
    symlink("elsewhere", kept.path("s")).unwrap();
    fails("can't be read").await;
    fs::remove_file(kept.path("s")).unwrap();
    fs::create_dir(kept.path("s")).unwrap();
    fails("it is no file").await;
    fs::remove_dir(kept.path("s")).unwrap();
    nix::unistd::mkfifo(&kept.path("s"), nix::sys::stat::Mode::S_IRUSR).unwrap();
    fails("it is no file").await;
}

#[tokio::test]
async fn a_tenant_has_so_many_and_no_more() {
    let kept = Kept::new();
    kept.set("a0", "x", None).await.unwrap();
    for n in 1..SECRETS_MAX {
        fs::write(kept.path(&format!("a{n}")), "x").unwrap();
    }
    let error = kept.set("one-more", "x", None).await.unwrap_err();
    assert_eq!(error.reason(), Reason::TooManySecrets);
    kept.set("a0", "y", None).await.unwrap();
    kept.secrets.remove(tenant("team-a"), "a1".to_owned()).await.unwrap();
    kept.set("one-more", "x", None).await.unwrap();
}

#[tokio::test]
async fn a_removed_one_is_gone_with_its_expiry() {
    let kept = Kept::new();
    kept.set("db", "x", Some(Duration::from_secs(60))).await.unwrap();
    kept.secrets.remove(tenant("team-a"), "db".to_owned()).await.unwrap();
    assert_eq!(kept.get("db").await.unwrap_err(), "there is none");
    assert_eq!(fs::read_dir(kept.path("")).unwrap().count(), 0);
}

/// Red when a value that had no expiry is left with a new, short-lived value for good.
#[tokio::test]
async fn a_value_never_outlives_the_expiry_that_it_was_set_with() {
    let kept = Kept::new();
    kept.set("s", "for good", None).await.unwrap();
    // Nothing can get this name any more.
    fs::create_dir_all(kept.path("s.expires/in-the-way")).unwrap();
    kept.set("s", "for a minute", Some(Duration::from_secs(60))).await.unwrap_err();
    fs::remove_dir_all(kept.path("s.expires")).unwrap();
    assert_ne!(kept.get("s").await.ok(), Some(Bytes::from_static(b"for a minute")));
    let left = fs::read_dir(kept.path("")).unwrap().count();
    assert!(left <= 1, "{left} files");
    // And where there is no room for the expiry, the old value stays.
    kept.set("s", "old", None).await.unwrap();
    fs::create_dir_all(kept.path(".new.expires/in-the-way")).unwrap();
    kept.set("s", "for a minute", Some(Duration::from_secs(60))).await.unwrap_err();
    assert_eq!(kept.get("s").await.unwrap(), "old");
}

/// Red when the expiry is read in another way than the value: a pipe holds up whoever reads it.
#[tokio::test]
async fn an_expiry_that_is_no_file_of_ours_is_not_read() {
    let kept = Kept::new();
    kept.set("s", "value", Some(Duration::from_secs(60))).await.unwrap();
    let (at, real) = (kept.path("s.expires"), kept.path("elsewhere"));
    fs::rename(&at, &real).unwrap();
    symlink(&real, &at).unwrap();
    assert!(kept.get("s").await.unwrap_err().starts_with("when it expires"), "a link");
    fs::remove_file(&at).unwrap();
    nix::unistd::mkfifo(&at, nix::sys::stat::Mode::S_IRUSR).unwrap();
    assert!(kept.get("s").await.unwrap_err().contains("no file"), "a pipe");
    fs::remove_file(&at).unwrap();
    fs::write(&at, "x".repeat(1000)).unwrap();
    fs::set_permissions(&at, fs::Permissions::from_mode(0o600)).unwrap();
    assert!(kept.get("s").await.unwrap_err().contains("larger"), "not a time");
    fs::set_permissions(&at, fs::Permissions::from_mode(0o666)).unwrap();
    assert!(kept.get("s").await.unwrap_err().contains("0666"), "others may write it");
}

/// Red when all that is named is read and held, however little of it can be given.
#[tokio::test]
async fn no_more_is_read_than_can_be_given() {
    let kept = Kept::new();
    let names: BTreeSet<String> = (0..12).map(|n| format!("s{n}")).collect();
    for name in &names {
        kept.set(name, &"x".repeat(VALUE_MAX), None).await.unwrap();
    }
    let values = kept.secrets.values(&tenant("team-a"), names).await;
    let given = values.iter().filter(|value| matches!(value.is, Some(Is::Value(_)))).count();
    assert_eq!((values.len(), given), (12, TOTAL_MAX / VALUE_MAX));
}
