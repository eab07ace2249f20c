//! The directories that one stream watches, by what the kernel calls each watch (`W`) and by their names: the kernel tells
//! of a name in a watched directory, and nothing of where that one is by now.
//!
//! Pure: what is here follows from what was told, in the order in which it was told.

use std::{
    collections::{BTreeMap, HashMap},
    ffi::{OsStr, OsString},
    hash::Hash,
    os::unix::ffi::OsStrExt,
};

/// See the module.
pub struct Tree<W> {
    root: Option<W>,
    dirs: HashMap<W, Dir<W>>,
}

struct Dir<W> {
    /// `None`: the root.
    parent: Option<W>,
    name: OsString,
    children: BTreeMap<OsString, W>,
}

/// What is told does not fit together: something moved while it was looked at.
#[derive(Debug, PartialEq, Eq)]
pub struct Confused;

impl<W> Default for Tree<W> {
    fn default() -> Self {
        Self { root: None, dirs: HashMap::new() }
    }
}

impl<W: Copy + Eq + Hash> Tree<W> {
    pub fn len(&self) -> usize {
        self.dirs.len()
    }

    pub fn contains(&self, dir: W) -> bool {
        self.dirs.contains_key(&dir)
    }

    pub fn is_root(&self, dir: W) -> bool {
        self.root == Some(dir)
    }

    pub fn child(&self, dir: W, name: &OsStr) -> Option<W> {
        self.dirs.get(&dir)?.children.get(name).copied()
    }

    /// The path of a name in a directory, or of the directory itself, below the root.
    pub fn path(&self, dir: W, name: &OsStr) -> Vec<u8> {
        let mut names = vec![name];
        let mut at = self.dirs.get(&dir);
        while let Some(dir) = at {
            names.push(&dir.name);
            at = dir.parent.and_then(|parent| self.dirs.get(&parent));
        }
        let names: Vec<&[u8]> =
            names.into_iter().rev().map(OsStr::as_bytes).filter(|name| !name.is_empty()).collect();
        names.join(&b'/')
    }

    /// The first directory.
    pub fn plant(&mut self, dir: W) {
        self.root = Some(dir);
        self.dirs.insert(dir, Dir { parent: None, name: OsString::new(), children: BTreeMap::new() });
    }

    /// A directory is at this place now, with all that is below it if it was known before. Whether it is new.
    pub fn put(&mut self, dir: W, parent: W, name: &OsStr) -> Result<bool, Confused> {
        if !self.dirs.contains_key(&parent) || self.is_root(dir) || self.is_within(parent, dir) {
            return Err(Confused);
        }
        let known = match self.dirs.get_mut(&dir) {
            Some(known) => {
                let was = (known.parent.replace(parent), std::mem::replace(&mut known.name, name.to_owned()));
                if let (Some(was), old) = was
                    && let Some(was) = self.dirs.get_mut(&was)
                    && was.children.get(&old) == Some(&dir)
                {
                    was.children.remove(&old);
                }
                true
            }
            None => {
                let new = Dir { parent: Some(parent), name: name.to_owned(), children: BTreeMap::new() };
                self.dirs.insert(dir, new);
                false
            }
        };
        if let Some(parent) = self.dirs.get_mut(&parent) {
            parent.children.insert(name.to_owned(), dir);
        }
        Ok(!known)
    }

    fn is_within(&self, mut dir: W, above: W) -> bool {
        loop {
            if dir == above {
                return true;
            }
            match self.dirs.get(&dir).and_then(|dir| dir.parent) {
                Some(parent) => dir = parent,
                None => return false,
            }
        }
    }

    /// Forgets a directory and all below it. Which these were.
    pub fn take(&mut self, dir: W) -> Vec<W> {
        if let Some(known) = self.dirs.get(&dir) {
            let (parent, name) = (known.parent, known.name.clone());
            if let Some(parent) = parent.and_then(|parent| self.dirs.get_mut(&parent))
                && parent.children.get(&name) == Some(&dir)
            {
                parent.children.remove(&name);
            }
        }
        let (mut gone, mut next) = (Vec::new(), vec![dir]);
        while let Some(dir) = next.pop() {
            if let Some(dir_of) = self.dirs.remove(&dir) {
                // A name that was given to another since is not this one's child.
                next.extend(
                    dir_of
                        .children
                        .into_values()
                        .filter(|child| self.dirs.get(child).is_some_and(|known| known.parent == Some(dir))),
                );
                gone.push(dir);
            }
        }
        gone
    }

    /// Forgets all.
    pub fn clear(&mut self) -> Vec<W> {
        self.root = None;
        self.dirs.drain().map(|(dir, _)| dir).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(tree: &Tree<i32>, dir: i32, name: &str) -> String {
        String::from_utf8(tree.path(dir, OsStr::new(name))).unwrap()
    }

    /// `1` is the root; `2` is `a`, `3` is `a/b`, `4` is `c`.
    fn tree() -> Tree<i32> {
        let mut tree = Tree::default();
        tree.plant(1);
        for (dir, parent, name) in [(2, 1, "a"), (3, 2, "b"), (4, 1, "c")] {
            assert_eq!(tree.put(dir, parent, OsStr::new(name)), Ok(true));
        }
        tree
    }

    #[test]
    fn paths_follow_what_is_renamed() {
        let mut tree = tree();
        assert_eq!(path(&tree, 3, "x"), "a/b/x");
        assert_eq!(path(&tree, 1, ""), "");
        assert_eq!(path(&tree, 3, ""), "a/b");
        assert_eq!(tree.put(2, 4, OsStr::new("moved")), Ok(false));
        assert_eq!(path(&tree, 3, "x"), "c/moved/b/x");
        assert_eq!((tree.child(1, OsStr::new("a")), tree.child(4, OsStr::new("moved"))), (None, Some(2)));
    }

    #[test]
    fn what_is_below_goes_with_it() {
        let mut tree = tree();
        let mut gone = tree.take(2);
        gone.sort_unstable();
        assert_eq!(gone, [2, 3]);
        assert_eq!((tree.len(), tree.child(1, OsStr::new("a"))), (2, None));
        assert!(tree.take(2).is_empty());
        // A name that has another directory by now keeps it.
        tree.put(5, 1, OsStr::new("c")).unwrap();
        tree.take(4);
        assert_eq!(tree.child(1, OsStr::new("c")), Some(5));
    }

    /// Red without the look upwards: then a path has no end.
    #[test]
    fn nothing_is_put_below_itself() {
        let mut tree = tree();
        assert_eq!(tree.put(2, 3, OsStr::new("x")), Err(Confused));
        assert_eq!(tree.put(2, 2, OsStr::new("x")), Err(Confused));
        assert_eq!(tree.put(1, 2, OsStr::new("x")), Err(Confused));
        assert_eq!(tree.put(9, 8, OsStr::new("x")), Err(Confused));
        assert_eq!(path(&tree, 3, "x"), "a/b/x");
    }
}
