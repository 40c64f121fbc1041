#!/usr/bin/env bash
# Cargo 1.95.0 takes the library of another checkout for that of this one, if both build into one target folder.
#
# Expected: two checkouts with other sources are other packages, as their folders differ, and are compiled each.
# Seen:     packages are told apart by their path within the workspace, and sources by their time alone: a library of the second
#           checkout that is older than the build of the first is not compiled, and the program of the second prints the words of
#           the first. Once its file is touched, it prints its own.
# For us:   tests of one branch in a worktree passed with the code of another. Each checkout needs a target folder of its own.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
for checkout in first second; do
    mkdir -p "$folder/$checkout/app/src" "$folder/$checkout/part/src"
    printf '[workspace]\nmembers = ["app", "part"]\nresolver = "3"\n' >"$folder/$checkout/Cargo.toml"
    printf '[package]\nname = "part"\nversion = "0.0.0"\nedition = "2024"\n' >"$folder/$checkout/part/Cargo.toml"
    printf '[package]\nname = "app"\nversion = "0.0.0"\nedition = "2024"\n\n[dependencies]\npart = { path = "../part" }\n' \
        >"$folder/$checkout/app/Cargo.toml"
    printf 'pub fn name() -> &%sstatic str {\n    "%s"\n}\n' "'" "$checkout" >"$folder/$checkout/part/src/lib.rs"
    printf 'fn main() {\n    println!("{}", part::name());\n}\n' >"$folder/$checkout/app/src/main.rs"
done
sleep 1
run() {
    (cd "$folder/$1" && CARGO_TARGET_DIR="$folder/target" cargo +1.95.0 run --quiet --offline --package app)
}
seen="$(run first) $(run second)"
touch "$folder/second/part/src/lib.rs"
seen="$seen $(run second)"
echo "$seen"
[ "$seen" = "first first second" ]
