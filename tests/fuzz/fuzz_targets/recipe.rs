//! The recipe of an image.
#![no_main]

use std::path::{Component, Path};

use drophammer_images::Recipe;
use drophammer_protocol::manifest::is_plain_name;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let Ok(recipe) = Recipe::parse(text) else { return };
    assert!(is_plain_name(&recipe.name));
    for path in recipe.dirs.keys().chain(recipe.files.keys()).chain(recipe.links.keys()) {
        let mut parts = Path::new(path).components();
        assert_eq!(parts.next(), Some(Component::RootDir), "{path:?}");
        assert!(parts.all(|part| matches!(part, Component::Normal(_))), "{path:?}");
    }
});
