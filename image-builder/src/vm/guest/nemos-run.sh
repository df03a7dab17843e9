# Serves a virtio-serial port. Over it come lines "NUMBER COMMAND-IN-BASE64"; the answer to each is "done NUMBER STATUS".
# What the command prints goes to two other ports, and each of them gets a mark when it has ended.
ports=/dev/virtio-ports
# However long it takes: a machine that is emulated on a busy host takes longer than systemd waits for a device.
udevadm wait $ports/nemos.run $ports/nemos.run.out $ports/nemos.run.err
exec 3<>$ports/nemos.run 4>$ports/nemos.run.out 5>$ports/nemos.run.err

# A unit that failed makes the system degraded, but it is up all the same.
systemctl is-system-running --wait >/dev/null 2>&1
echo up >&3

while read -r number encoded <&3; do
    command=$(printf %s "$encoded" | base64 -d)
    sh -c "$command" </dev/null >&4 2>&5 3>&- 4>&- 5>&-
    status=$?
    printf '\0end %s\0' "$number" >&4
    printf '\0end %s\0' "$number" >&5
    echo "done $number $status" >&3
done
