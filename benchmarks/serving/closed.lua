-- wrk's script: every connection sends inputs of its own, and every answer is checked.
--
-- Run with one connection a thread, so that an answer belongs to the last request of its thread.
-- BENCH_PAYLOAD names the folder that payload.py wrote, BENCH_RESULT the JSON file to write.

local ffi = require("ffi")
ffi.cdef [[
typedef struct { long seconds; long nanoseconds; } bench_time;
int clock_gettime(int clock, bench_time *now);
]]

local MONOTONIC = 1
local now = ffi.new("bench_time")

local function milliseconds()
    ffi.C.clock_gettime(MONOTONIC, now)
    return tonumber(now.seconds) * 1e3 + tonumber(now.nanoseconds) / 1e6
end

local folder = os.getenv("BENCH_PAYLOAD")
local spec = dofile(folder .. "/payload.lua")
local threads = {}

function setup(thread)
    thread:set("number", #threads)
    threads[#threads + 1] = thread
end

local function part(file, offset, size)
    file:seek("set", offset)
    return file:read(size)
end

local requests, expected = {}, {}
local current, started = 1, nil
-- Globals, because `done` asks a thread for them by name.
times, right, wrong, refused, sample = {}, 0, 0, 0, ""

function init()
    local bodies = io.open(folder .. "/bodies.bin", "rb")
    local answers = io.open(folder .. "/expected.bin", "rb")
    for index = 1, spec.each do
        local own = (number * spec.each + index - 1) % #spec.sizes + 1
        local body = part(bodies, spec.offsets[own], spec.sizes[own])
        requests[index] = wrk.format("POST", spec.path, spec.headers[own], body)
        local width = 4 * spec.outputs
        local text = part(answers, (own - 1) * width, width)
        local floats, values = ffi.new("float[?]", spec.outputs), {}
        ffi.copy(floats, text, width)
        for column = 1, spec.outputs do values[column] = tonumber(floats[column - 1]) end
        expected[index] = values
    end
    bodies:close()
    answers:close()
end

function request()
    current = current % spec.each + 1
    local text = requests[current]
    started = milliseconds()
    return text
end

-- Written so that a NaN fails.
local function close_enough(got, wanted)
    return got and math.abs(got - wanted) <= spec.tolerance * math.max(1, math.abs(wanted))
end

local function from_json(body, wanted)
    local _, at = body:find(spec.marker, 1, true)
    if not at then return false end
    for column = 1, spec.outputs do
        local first, last = body:find("[-+%d.eE]+", at + 1)
        if not first or not close_enough(tonumber(body:sub(first, last)), wanted[column]) then
            return false
        end
        at = last
    end
    return true
end

local function from_bytes(body, wanted)
    local width = 4 * spec.outputs
    if #body < width then return false end
    local floats = ffi.new("float[?]", spec.outputs)
    ffi.copy(floats, body:sub(-width), width)
    for column = 1, spec.outputs do
        if not close_enough(tonumber(floats[column - 1]), wanted[column]) then return false end
    end
    return true
end

function response(status, headers, body)
    times[#times + 1] = milliseconds() - started
    local check = spec.marker and from_json or from_bytes
    if status ~= 200 then
        refused = refused + 1
        sample = status .. " " .. body:sub(1, 200)
    elseif check(body, expected[current]) then
        right = right + 1
    else
        wrong = wrong + 1
        sample = status .. " " .. body:sub(1, 200)
    end
end

function done(summary, latency, _)
    local all, counts, text = {}, { right = 0, wrong = 0, refused = 0 }, ""
    for _, thread in ipairs(threads) do
        for _, time in ipairs(thread:get("times")) do
            all[#all + 1] = string.format("%.4f", time)
        end
        for name, count in pairs(counts) do counts[name] = count + thread:get(name) end
        if thread:get("sample") ~= "" then text = thread:get("sample") end
    end
    local errors = summary.errors
    local file = io.open(os.getenv("BENCH_RESULT"), "w")
    file:write(string.format(
        '{"seconds": %.6f, "right": %d, "wrong": %d, "refused": %d, "broken": %d, ',
        summary.duration / 1e6, counts.right, counts.wrong, counts.refused,
        errors.connect + errors.read + errors.write + errors.timeout))
    -- As hexadecimal digits: whatever a server sent stays valid JSON.
    local hex = text:gsub(".", function(c) return string.format("%02x", c:byte()) end)
    file:write('"sample": "', hex, '", "milliseconds": [', table.concat(all, ","), "]}\n")
    file:close()
end
