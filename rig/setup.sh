#!/usr/bin/env bash
# Prepares `rolecall rig`: the emulators, and two stock Debian kernels. See docs/rig.md.
#
#   rig/setup.sh [DIR [KERNEL...]]      DIR is where it all goes, without it target/rig; kernels are 6.1 and 6.12, without any both
#
# It needs Debian, apt-get with a mirror that has bookworm and bookworm-backports, and root for what is not yet installed. What is
# there already is left alone: remove DIR/6.1 or DIR/6.12 to fetch that kernel anew.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
mkdir -p "${1:-$root/target/rig}"
dir=$(cd "${1:-$root/target/rig}" && pwd)

# The emulators, and what unpacks kernels. strip (binutils) only makes the modules smaller.
packages=(qemu-system-x86 seabios bochs bochs-term bochsbios vgabios lz4 zstd xz-utils binutils)
missing=()
for package in "${packages[@]}"; do
    [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || missing+=("$package")
done
if [ ${#missing[@]} -gt 0 ]; then
    echo "installing ${missing[*]}"
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi

# apt with one suite of Debian and nothing else, whatever this machine's own sources choose between.
apt_of() {
    local apt=$dir/apt/$1
    "$2" -qq -o Dir::Etc::sourcelist="$apt.list" -o Dir::Etc::sourceparts=/dev/null -o Dir::State::lists="$apt" \
        -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache= -o APT::Sandbox::User=root "${@:3}"
}

# The mirror is the one that this machine's own sources name for Debian.
mirror() {
    # shellcheck disable=SC2016 # apt fills these in.
    apt-get indextargets --format '$(REPO_URI) $(ORIGIN) $(LABEL)' 'Created-By: Packages' |
        awk '$2 == "Debian" && $3 == "Debian" { print $1 }' | sort -u | tail -n 1
}

# The ELF file in a bzImage: its payload lies where the boot protocol's header says, with its length behind it.
uncompress() {
    local image=$1 sectors offset length
    number() { od -An -t "u$3" -j "$2" -N "$3" "$1" | tr -d ' '; }
    sectors=$(number "$image" $((0x1f1)) 1)
    offset=$(((${sectors/#0/4} + 1) * 512 + $(number "$image" $((0x248)) 4)))
    length=$(number "$image" $((0x24c)) 4)
    payload() { head -c $((offset + length - 4)) "$image" | tail -c $((length - 4)); }
    case $(od -An -t x1 -j "$offset" -N 4 "$image" | tr -d ' ') in
    28b52ffd) payload | zstd -dcq ;;
    02214c18) payload | lz4 -dcq ;;
    *) echo "a kernel compressed in a way that is not known: $image" >&2 && return 1 ;;
    esac
}

# One kernel: its newest cloud package in a suite, unpacked, never installed.
kernel() {
    local name=$1 suite=$2 place=$dir/$1 work=$dir/$1.new package module file
    [ -e "$place/version" ] && return
    echo "fetching the $name kernel of $suite"
    mkdir -p "$dir/apt/$suite/partial"
    echo "deb $(mirror) $suite main" >"$dir/apt/$suite.list"
    apt_of "$suite" apt-get update
    package=$(apt_of "$suite" apt-cache depends linux-image-cloud-amd64 | awk '/Depends: linux-image/ { print $2 }')
    [ -n "$package" ] || { echo "$suite has no linux-image-cloud-amd64" >&2; return 1; }
    rm -rf "$work" && mkdir -p "$work/unpacked"
    (cd "$work" && apt_of "$suite" apt-get download "$package" && dpkg-deb -x "$package"_*.deb unpacked)
    mv "$work"/unpacked/boot/vmlinuz-* "$work/vmlinuz"
    uncompress "$work/vmlinuz" >"$work/vmlinux"
    for module in irqbypass kvm kvm-amd kvm-intel; do
        file=$(find "$work/unpacked" -name "$module.ko*")
        case $file in
        *.xz) xz -dc "$file" >"$work/$module.ko" ;;
        *.ko) mv "$file" "$work/$module.ko" ;;
        *) echo "$package has no module $module" >&2 && return 1 ;;
        esac
        ! command -v strip >/dev/null || strip --strip-debug "$work/$module.ko"
    done
    echo "$package $(cd "$work" && dpkg-deb -f "$package"_*.deb Version)" >"$work/version"
    rm -rf "$work/unpacked" "$work"/*.deb "$place"
    mv "$work" "$place"
}
kernels=("${@:2}")
[ ${#kernels[@]} -gt 0 ] || kernels=(6.1 6.12)
for name in "${kernels[@]}"; do
    case $name in
    6.1) kernel 6.1 bookworm ;;
    6.12) kernel 6.12 bookworm-backports ;;
    *) echo "no such kernel: $name (6.1, 6.12)" >&2 && exit 2 ;;
    esac
done

for name in "${kernels[@]}"; do echo "$name: $(cat "$dir/$name/version")"; done
