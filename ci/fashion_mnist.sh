#!/usr/bin/env bash
# Puts the real Fashion-MNIST (Debian's package dataset-fashion-mnist, 70,000 images) where the examples look for it,
# if it can be had: no root needed, and nothing is lost without it, since the examples then say that they use
# scikit-learn's digits. Other systems: put the four *-ubyte.gz files into a folder and give the examples --data-dir.
set -euo pipefail
cache=${HOROVOD_SIGN_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/horovod_sign}
package=dataset-fashion-mnist
folder=$cache/fashion-mnist
[ -e "$folder/t10k-images-idx3-ubyte.gz" ] || [ -e /usr/share/datasets/fashion-mnist ] && exit
mkdir -p "$cache"
work=$(mktemp -d "$cache/.$package-XXXXXX")  # beside its place, so that it gets there whole
trap 'rm -rf "$work"' EXIT
cd "$work"
download() { apt-get download "$package" >/dev/null 2>&1; }
if command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null; then
    download || { apt-get update >/dev/null 2>&1 && download; } || true
fi
if compgen -G "$package*.deb" >/dev/null; then
    dpkg-deb -x "$package"*.deb .
    found=$PWD/$(dirname "$(find . -name t10k-images-idx3-ubyte.gz | head -n 1)")
    [ -e "$folder" ] || mv -T "$found" "$folder"
    echo "Fashion-MNIST: in $folder, after $SECONDS s" >&2
else
    echo "Fashion-MNIST: not to be had here (Debian's package $package); the examples will use scikit-learn's digits" >&2
fi
