// Which positions of a block are active, and where they and their neighbours lie.
#pragma once
#include <array>
#include <cstdint>
#include <vector>

namespace sact {

using Index = std::vector<int32_t>;

constexpr int kMaxReach = 15; // how far a unit's first convolution may read around an active position

// Positions of a batch of pictures, with `margin` cells around each picture that stand for zeros.
struct Grid {
    int n = 0, height = 0, width = 0, margin = 0;

    int area() const { return height * width; }
    int positions() const { return n * area(); }
    int pitch() const { return width + 2 * margin; }
    int cells() const { return n * (height + 2 * margin) * pitch(); }
    int cell(int image, int y, int x) const {
        return (image * (height + 2 * margin) + y + margin) * pitch() + x + margin;
    }
    bool operator==(const Grid &other) const {
        return n == other.n && height == other.height && width == other.width && margin == other.margin;
    }
};

// Active positions, and those within some reach of one: each as rows (numbers of positions, ascending), as cells of the
// grid, and as a map from every cell to its place among the rows, or to the row behind the last where it has none.
class Sites {
  public:
    // Everything in the grid is active.
    void start(const Grid &grid) {
        if (!(grid == grid_)) {
            grid_ = grid;
            all_.rows.resize(grid.positions());
            all_.cells.resize(grid.positions());
            all_.map.assign(grid.cells(), grid.positions());
            int row = 0;
            for (int image = 0; image < grid.n; image++)
                for (int y = 0; y < grid.height; y++)
                    for (int x = 0; x < grid.width; x++, row++) {
                        const int cell = grid.cell(image, y, x);
                        all_.rows[row] = row;
                        all_.cells[row] = cell;
                        all_.map[cell] = row;
                    }
        }
        active_ = all_.rows;
        changed();
    }

    const Grid &grid() const { return grid_; }
    const Index &active() const { return active_; }
    // Cell of every position, and position of every cell.
    const Index &all_cells() const { return all_.cells; }
    const Index &all_map() const { return all_.map; }

    // Only the marked ones of the active positions go on.
    void keep(const std::vector<uint8_t> &marks) {
        size_t kept = 0;
        for (size_t m = 0; m < active_.size(); m++)
            if (marks[m]) active_[kept++] = active_[m];
        if (kept == active_.size()) return;
        active_.resize(kept);
        changed();
    }

    const Index &rows(int reach) { return reach == 0 ? active_ : listed(reach).rows; }
    const Index &cells(int reach) { return listed(reach).cells; }
    const Index &map(int reach) {
        Place &place = listed(reach);
        if (&place != &all_ && !place.mapped) {
            const Index &at = rows(reach);
            place.map.assign(grid_.cells(), int32_t(at.size()));
            for (size_t i = 0; i < at.size(); i++) place.map[place.cells[i]] = int32_t(i);
            place.mapped = true;
        }
        return place.map;
    }
    int64_t bytes() const {
        size_t total = active_.capacity() + all_.rows.capacity() + all_.cells.capacity() + all_.map.capacity();
        for (const Place &place : places_) total += place.rows.capacity() + place.cells.capacity() + place.map.capacity();
        return int64_t(total * sizeof(int32_t) + near_.capacity() + wide_.capacity());
    }

  private:
    struct Place {
        Index rows, cells, map;
        bool current = false, mapped = false;
    };

    void changed() {
        for (Place &place : places_) place.current = place.mapped = false;
    }

    Place &listed(int reach) {
        if (int(active_.size()) == grid_.positions()) return all_;
        Place &place = places_[reach];
        if (place.current) return place;
        if (reach) dilate(listed(reach - 1).cells, place);
        const Index &at = rows_of(reach);
        place.cells.resize(at.size());
        for (size_t m = 0; m < at.size(); m++) place.cells[m] = all_.cells[at[m]];
        place.current = true;
        return place;
    }
    const Index &rows_of(int reach) const { return reach ? places_[reach].rows : active_; }

    // List the positions in a cell of `from` or beside one.
    void dilate(const Index &from, Place &to) {
        const int pitch = grid_.pitch();
        near_.assign(grid_.cells(), 0);
        wide_.assign(grid_.cells(), 0);
        for (int32_t cell : from) near_[cell] = 1;
        for (size_t i = 1; i + 1 < near_.size(); i++) wide_[i] = near_[i - 1] | near_[i] | near_[i + 1];
        to.rows.clear();
        for (int image = 0, row = 0; image < grid_.n; image++)
            for (int y = 0; y < grid_.height; y++) {
                const uint8_t *line = &wide_[grid_.cell(image, y, 0)];
                for (int x = 0; x < grid_.width; x++, row++)
                    if (line[x - pitch] | line[x] | line[x + pitch]) to.rows.push_back(row);
            }
    }

    Grid grid_;
    Place all_;
    Index active_;
    std::array<Place, kMaxReach + 1> places_; // by reach
    std::vector<uint8_t> near_, wide_;
};

} // namespace sact
